//! Writes `include/offloop.h` from the Rust sources of the C ABI and from core's tables: `cargo run`; with `--check` it
//! only says whether the committed file is current.
//!
//! The functions that plugins share get their symbols by a `cfg_attr`, which cbindgen does not read, and their rustdoc has
//! `# Safety` sections, which a C reader has in other words already: both are rewritten before cbindgen sees the sources.

use cbindgen::{Config, DocumentationStyle, Language, SortKey, Style};
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

/// The sources, in the order of the header.
const SOURCES: &[&str] = &[
    "abi/mod.rs",
    "capi/mod.rs",
    "abi/status.rs",
    "abi/value.rs",
    "abi/codec.rs",
    "abi/buffer.rs",
    "abi/ctx.rs",
    "capi/completion.rs",
    "capi/pool.rs",
    "capi/task.rs",
    "capi/process.rs",
    "capi/stream.rs",
    "capi/cluster.rs",
    "capi/member.rs",
    "capi/shared.rs",
    "capi/ring.rs",
    "capi/channel.rs",
    "capi/metrics.rs",
    "abi/host.rs",
];

/// Structs that begin with `struct_size`, and the macro that fills them.
const INITS: &[(&str, &str)] = &[
    ("offloop_pool_options", "OFFLOOP_POOL_OPTIONS_INIT"),
    ("offloop_submit_options", "OFFLOOP_SUBMIT_OPTIONS_INIT"),
    ("offloop_codec_options", "OFFLOOP_CODEC_OPTIONS_INIT"),
    ("offloop_ring_options", "OFFLOOP_RING_OPTIONS_INIT"),
    ("offloop_producer_options", "OFFLOOP_PRODUCER_OPTIONS_INIT"),
    ("offloop_consumer_options", "OFFLOOP_CONSUMER_OPTIONS_INIT"),
    ("offloop_channel_options", "OFFLOOP_CHANNEL_OPTIONS_INIT"),
    ("offloop_process_pool_options", "OFFLOOP_PROCESS_POOL_OPTIONS_INIT"),
    ("offloop_cluster_options", "OFFLOOP_CLUSTER_OPTIONS_INIT"),
    ("offloop_cluster_counts", "OFFLOOP_CLUSTER_COUNTS_INIT"),
    ("offloop_cluster_load", "OFFLOOP_CLUSTER_LOAD_INIT"),
    ("offloop_reload_report", "OFFLOOP_RELOAD_REPORT_INIT"),
    ("offloop_limit", "OFFLOOP_LIMIT_INIT"),
    ("offloop_taken", "OFFLOOP_TAKEN_INIT"),
    ("offloop_op_def", "OFFLOOP_OP_DEF_INIT"),
];

const CONVENTIONS: &str = r#"/* offloop: native pools, transferable buffers and native ops. https://github.com/offloop/offloop
 *
 * Written from the sources in core/src/abi and core/src/capi by `make bless`; edit those.
 *
 * Conventions
 *  - A function that can fail returns offloop_status: 0 (OFFLOOP_OK) or a negative OFFLOOP_ERR_…. Results come last, through
 *    pointers that are written on OK only. offloop_last_error() is this thread's last message, with the values in it.
 *  - offloop_x_new and offloop_x_free come in pairs. offloop_x_free(NULL) does nothing.
 *  - An offloop_x * is a handle, never an address. A freed, moved, forged or mistyped one gives OFFLOOP_ERR_INVALID. A call holds
 *    what it uses, so freeing a handle during a call on another thread is safe. Handles may be used on any thread.
 *  - A parameter `T **x_io` is moved: on OK the library has the object and *x_io is NULL; on error it is untouched, still yours.
 *    While one call moves a handle, another sees OFFLOOP_ERR_IN_USE.
 *  - A `const offloop_value *` that you get is borrowed: it ends when the value it came from is changed, moved or freed, and needs
 *    no free. Pointers to bytes and texts live as long as what they point into.
 *  - A callback runs exactly once or, if the call that took it failed, never. user_free(user) comes after it, once. arg_free(arg) is
 *    called exactly once for an accepted task, whatever its outcome; if the call failed, arg is still yours.
 *  - A function pointer must not unwind: no C++ exception and no longjmp out of it.
 *  - Options structs begin with struct_size; start from OFFLOOP_X_OPTIONS_INIT. 0 and NULL are the defaults. Options that a library
 *    does not know yet must be 0, else OFFLOOP_ERR_VERSION.
 *  - Texts are UTF-8. Durations are nanoseconds; below 0 a wait is for ever.
 *  - Threads of the library block every asynchronous signal, so some thread of the program's must take SIGTERM and the like. A main that
 *    ends by pthread_exit leaves the process without one unless another thread of its own goes on: return, call exit, or wait there.
 *  - After fork, a child that goes on without exec must not use handles of its parent.
 *
 * A plugin includes this header and links to nothing; see offloop_plugin at the end.
 */
#ifndef OFFLOOP_H
#define OFFLOOP_H
"#;

const PLUGIN: &str = r#"
#if defined(__GNUC__)
#define OFFLOOP_PLUGIN_EXPORT __attribute__((visibility("default")))
#else
#define OFFLOOP_PLUGIN_EXPORT
#endif

/** The first line of offloop_plugin: refuses a host that is older than this header. */
#define OFFLOOP_PLUGIN_CHECK(host) \
  do { \
    if ((host)->abi_version < OFFLOOP_ABI_VERSION) \
      return OFFLOOP_ERR_VERSION; \
  } while (0)

#ifdef __cplusplus
extern "C" {
#endif

/**
 * What a plugin exports: called once per offloop_pool_load, with the table of functions that it may use. It registers its ops
 * (host->register_op) and returns OFFLOOP_OK, or an error, and then none of its ops is added. The table lives as long as the
 * process. A plugin is compiled with `cc -shared -fPIC` and links to nothing.
 */
OFFLOOP_PLUGIN_EXPORT int32_t offloop_plugin(const offloop_host *host, offloop_registry *registry);

#ifdef __cplusplus
}
#endif

#endif
"#;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("tests/header lies in the root")
}

fn source(name: &str) -> String {
    let path = root().join("core/src").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What cbindgen reads instead of `text`.
fn for_cbindgen(text: &str) -> String {
    let mut out = String::new();
    let mut in_safety = false;
    for line in text.lines() {
        let doc = line.trim_start().strip_prefix("///").map(str::trim);
        match doc {
            Some("# Safety") => in_safety = true,
            Some(_) if in_safety => {}
            _ => {
                in_safety = false;
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    // An empty doc line that stood before a removed section.
    out.replace("///\n#[", "#[").replace(r#"#[cfg_attr(feature = "capi", unsafe(no_mangle))]"#, "#[unsafe(no_mangle)]")
}

/// `{ sizeof(T), 0, NULL }` with a value for every field, because `-Wextra` warns about missing ones.
fn init(name: &str, macro_name: &str, text: &str) -> String {
    let body = text.split(&format!("pub struct {name} {{")).nth(1).and_then(|t| t.split("\n}").next());
    let body = body.unwrap_or_else(|| panic!("no struct {name}"));
    let fields: Vec<&str> = body
        .lines()
        .filter_map(|l| l.trim().strip_prefix("pub ")?.trim_end_matches(',').split_once(": "))
        .map(|(field, ty)| match field {
            "struct_size" => "",
            "abi_version" => "OFFLOOP_ABI_VERSION",
            _ if ty.starts_with('*') || ty.ends_with("_fn") => "NULL",
            _ => "0",
        })
        .collect();
    assert_eq!(fields.first(), Some(&""), "{name} does not begin with struct_size");
    format!("/** All defaults. */\n#define {macro_name} \\\n  {{ sizeof({name}), {} }}\n", fields[1..].join(", "))
}

/// The part of `text` between two marks.
fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let start = text.find(from).unwrap_or_else(|| panic!("no {from}")) + from.len();
    &text[start..start + text[start..].find(to).unwrap_or_else(|| panic!("no {to} after {from}"))]
}

fn enumeration(doc: &str, names: impl Iterator<Item = (String, i64)>) -> String {
    let rows: Vec<String> = names.map(|(name, value)| format!("  OFFLOOP_{name} = {value}")).collect();
    assert!(rows.len() > 5, "a table was not found where it was: {doc}");
    format!("/** {doc} */\nenum {{\n{}\n}};\n", rows.join(",\n"))
}

fn constants() -> String {
    // `    Full = -3, "ERR_OFFLOOP_FULL", …`
    let (error, value, types) = (source("error.rs"), source("value.rs"), source("abi/value.rs"));
    let statuses = between(&error, "error_kinds! {\n", "\n}\n").lines().filter_map(|l| {
        let (_, row) = l.split_once(" = ")?;
        let (status, code) = row.split_once(", \"ERR_OFFLOOP_")?;
        Some((format!("ERR_{}", code.split_once('"')?.0), status.trim().parse().ok()?))
    });
    let statuses = std::iter::once(("OK".to_owned(), 0)).chain(statuses);
    let types = between(&types, "TYPE_NAMES: [&str; 13] =", ";").split('"').skip(1).step_by(2).zip(0..);
    let dtypes = between(&value, "pub enum DType {", "}").split(',').map(|v| v.trim().split(' ').next().unwrap_or_default());
    let mut out = String::from("/** 0 or a negative error. The numbers never change; a newer library may return new ones. */\ntypedef int32_t offloop_status;\n\n");
    out += &enumeration("Statuses. offloop_status_name gives their names.", statuses);
    out.push('\n');
    out += &enumeration("Types of values.", types.map(|(name, i)| (format!("TYPE_{name}"), i)));
    out.push('\n');
    let dtypes = dtypes.filter(|d| !d.is_empty()).zip(1..).map(|(d, i)| (format!("DTYPE_{d}"), i));
    out += &enumeration("Element types of typed arrays.", dtypes);
    let _ = write!(out, "\n/** As a length: the text ends at its NUL byte. */\n#define OFFLOOP_NUL_TERMINATED ((size_t)-1)\n");
    out
}

/// The whole header.
fn offloop_h() -> String {
    let dir = std::env::temp_dir().join(format!("offloop-header-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("temporary directory");
    let mut builder = cbindgen::Builder::new();
    let mut all = String::new();
    for (i, name) in SOURCES.iter().enumerate() {
        let text = for_cbindgen(&source(name));
        let path = dir.join(format!("{i:02}.rs"));
        std::fs::write(&path, &text).expect("temporary file");
        all.push_str(&text);
        builder = builder.with_src(path);
    }
    let mut trailer: String = INITS.iter().map(|(name, macro_name)| init(name, macro_name, &all)).collect();
    trailer.push_str(PLUGIN);
    let mut config = Config {
        language: Language::C,
        cpp_compat: true,
        header: Some(CONVENTIONS.to_owned()),
        no_includes: true,
        sys_includes: ["stdbool.h", "stddef.h", "stdint.h"].map(str::to_owned).to_vec(),
        after_includes: Some(format!("\n{}", constants())),
        trailer: Some(trailer),
        style: Style::Type,
        usize_is_size_t: true,
        documentation: true,
        documentation_style: DocumentationStyle::Doxy,
        line_length: 120,
        tab_width: 2,
        ..Config::default()
    };
    config.function.sort_by = Some(SortKey::None);
    // Unused in signatures, but a plugin's and a user's own.
    config.export.include = ["offloop_host", "offloop_op_def"].map(str::to_owned).to_vec();
    config.export.exclude = ["offloop_failpoint_panic"].map(str::to_owned).to_vec();
    let mut out = Vec::new();
    builder.with_config(config).generate().expect("cbindgen reads the sources of the C ABI").write(&mut out);
    std::fs::remove_dir_all(&dir).expect("temporary directory");
    String::from_utf8(out).expect("cbindgen writes UTF-8")
}

fn main() -> ExitCode {
    let path = root().join("include/offloop.h");
    let want = offloop_h();
    let have = std::fs::read_to_string(&path).unwrap_or_default();
    if have == want {
        return ExitCode::SUCCESS;
    }
    if std::env::args().any(|a| a == "--check") {
        eprintln!("include/offloop.h is stale; run `make bless` and look at the diff");
        return ExitCode::FAILURE;
    }
    std::fs::create_dir_all(root().join("include")).expect("include/");
    std::fs::write(&path, want).expect("include/offloop.h");
    println!("rewrote include/offloop.h");
    ExitCode::SUCCESS
}
