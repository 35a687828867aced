//! C plugins: shared libraries that add ops to a pool.
//!
//! A plugin links to nothing. It exports `int32_t offloop_plugin(const offloop_host *, offloop_registry *)`, gets a table of
//! functions and registers its ops (`include/offloop.h`, `docs/plugins.md`). Its library stays loaded for as long as any
//! of its ops may run, and its symbols stay its own (`RTLD_LOCAL`). A plugin is native code inside this process: one that
//! crashes or lies takes the process with it.

use crate::abi::ffi::UserArg;
use crate::abi::handle::{self, Kind, Object};
use crate::abi::host::{HOST, Registration, offloop_host};
use crate::abi::status::OFFLOOP_ABI_VERSION;
use crate::abi::{ctx, offloop_registry, offloop_task_ctx};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::OpCtx;
use crate::pool::{DynOp, ThreadPool};
use crate::sync::lock;
use crate::sys::fork::ForkCell;
use crate::value::Value;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::ffi::{CStr, c_void};
use std::path::Path;
use std::sync::{Arc, Mutex};

static LOADING: ForkCell<Mutex<()>> = ForkCell::new();

type Entry = unsafe extern "C" fn(*const offloop_host, *mut offloop_registry) -> i32;

/// One op of a loaded plugin.
pub(crate) struct PluginOp {
    name: String,
    function: unsafe extern "C" fn(*mut offloop_task_ctx, *mut c_void) -> i32,
    arg: UserArg,
}

impl DynOp for PluginOp {
    fn name(&self) -> &str {
        &self.name
    }

    fn run(&self, ctx: &mut OpCtx<'_>) -> Result<Value> {
        // SAFETY: the plugin vouches for its function, and a library whose ops were accepted is never unloaded.
        unsafe { ctx::run(ctx, self.function, self.arg.get()) }
    }
}

fn name_of(path: &Path) -> String {
    path.display().to_string()
}

/// `dlopen` reports a text, not an errno, so what it would say about a missing file is found out before.
fn open(path: &Path) -> Result<Library> {
    if path.as_os_str().as_encoded_bytes().contains(&0) {
        // Shown escaped: a C caller would read the message up to the byte.
        return Err(Error::invalid("plugin path holds a NUL byte").with("path", name_of(path).replace('\0', "\\0")));
    }
    std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::new(ErrorKind::NotFound, "no plugin of that path").with("path", name_of(path)),
        _ => Error::os("stat", e.raw_os_error().unwrap_or(0)).with("path", name_of(path)),
    })?;
    // A name without a slash would be searched for in the system's library folders.
    let full = std::fs::canonicalize(path).map_err(|e| Error::os("realpath", e.raw_os_error().unwrap_or(0)).with("path", name_of(path)))?;
    // An fd or a permission that is missing is no property of the library.
    std::fs::File::open(&full).map_err(|e| Error::os("open", e.raw_os_error().unwrap_or(0)).with("path", name_of(path)))?;
    // SAFETY: loading runs the library's initialisers; that a plugin is trusted code is said in the docs.
    unsafe { Library::open(Some(&full), RTLD_NOW | RTLD_LOCAL) }.map_err(|e| {
        let text = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
        Error::invalid("file is no library that can be loaded").with("path", name_of(path)).with("dlopen", text)
    })
}

/// The message of the call that made the plugin give up.
fn last_message() -> String {
    // SAFETY: the pointer is this thread's last message, NUL-terminated.
    unsafe { CStr::from_ptr(crate::abi::ffi::last_error()) }.to_string_lossy().into_owned()
}

/// Loads the plugin and collects what it registers.
fn read(path: &Path) -> Result<Vec<PluginOp>> {
    let library = open(path)?;
    // SAFETY: the symbol has this type by the plugin's contract.
    let entry: Entry = *unsafe { library.get::<Entry>(b"offloop_plugin\0") }
        .map_err(|_| Error::new(ErrorKind::NotFound, "library exports no offloop_plugin").with("path", name_of(path)))?;
    let registry = handle::insert(Kind::Registry, Object::Registry(Vec::new()))?;
    // SAFETY: the plugin's contract; table and handle live until after the call.
    let status = unsafe { entry(&raw const HOST, registry.as_ptr()) };
    let taken = handle::take(registry, Kind::Registry)?;
    // If loading fails, each `arg` is freed before the library goes: it was declared first.
    let registered: Vec<Registration> = if let Object::Registry(list) = taken { list } else { Vec::new() };
    let ops: Vec<PluginOp> = registered.into_iter().map(|r| PluginOp { name: r.name, function: r.function, arg: r.arg }).collect();
    if status != 0 {
        let kind = ErrorKind::from_status(status);
        let e = Error::new(kind.unwrap_or(ErrorKind::TaskFailed), "plugin refused to load").with("path", name_of(path));
        return Err(match kind {
            Some(ErrorKind::Version) => e.with("host_abi", OFFLOOP_ABI_VERSION).with("message", last_message()),
            Some(_) => e.with("message", last_message()),
            None => e.with("status", status),
        });
    }
    if ops.is_empty() {
        return Err(Error::invalid("plugin registered no op").with("path", name_of(path)));
    }
    // Results may carry free functions of the plugin, and its threads may live on: nobody knows when the last is gone.
    std::mem::forget(library);
    Ok(ops)
}

impl ThreadPool {
    /// Loads a C plugin and returns the names of its ops, which can then be called like built-in ones. All of its ops are
    /// added, or none.
    ///
    /// # Errors
    /// `NotFound` when there is no such file or it exports no `offloop_plugin`; `Invalid` when it is no loadable library or
    /// registers nothing or a bad name; `Version` when it was compiled for another ABI; `Exists` when an op of that name
    /// is there already; `Os` when the file cannot be opened (no fd left, no permission); the plugin's own.
    pub fn load(&self, path: impl AsRef<Path>) -> Result<Vec<String>> {
        let path = path.as_ref();
        let ops = read(path)?;
        // One load at a time, so that no other plugin takes a name between the look and the registration.
        let _one = lock(LOADING.get(Mutex::default));
        let taken = self.op_names();
        if let Some(op) = ops.iter().find(|op| taken.contains(&op.name)) {
            return Err(Error::new(ErrorKind::Exists, "an op of that name is there already")
                .with("op", &op.name)
                .with("plugin", name_of(path)));
        }
        ops.into_iter()
            .map(|op| {
                let name = op.name.clone();
                self.register(Arc::new(op)).map(|()| name)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Bytes;
    use crate::pool::SubmitOptions;
    use std::path::PathBuf;
    use std::process::Command;

    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("core/ lies in the root")
    }

    /// Compiles C text, or the wordcount example for an empty one, to a plugin of that name.
    fn compile(name: &str, text: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("offloop-plugin-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("temporary directory");
        let source = if text.is_empty() {
            root().join("examples/plugin/wordcount.c")
        } else {
            let source = dir.join(format!("{name}.c"));
            std::fs::write(&source, text).expect("source");
            source
        };
        let library = dir.join(format!("{name}.so"));
        let flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-shared", "-fPIC", "-nodefaultlibs", "-Wl,--no-undefined"];
        let status = Command::new("cc").args(flags).arg("-I").arg(root().join("include")).arg(&source).arg("-o").arg(&library).status();
        assert!(status.expect("cc").success(), "{name}");
        library
    }

    fn pool() -> ThreadPool {
        ThreadPool::builder().max_workers(2).build().expect("pool")
    }

    fn run(pool: &ThreadPool, op: &str, input: &[u8], params: &Value) -> Result<Value> {
        pool.submit_op(op, vec![Bytes::from(input)], params, SubmitOptions::default())?.wait(None)
    }

    const PREFIX: &str = "#include <offloop.h>\nstatic const offloop_host *offloop;\n";

    /// A plugin with the op `name`, whose function is `body`.
    fn with_op(name: &str, body: &str, tweak: &str) -> String {
        format!(
            "{PREFIX}static int32_t f(offloop_task_ctx *ctx, void *arg) {{ (void)ctx; (void)arg; {body} }}\n\
             int32_t offloop_plugin(const offloop_host *host, offloop_registry *reg) {{\n\
             offloop_op_def def = OFFLOOP_OP_DEF_INIT; offloop = host; def.name = \"{name}\"; def.function = f; {tweak}\n\
             return host->register_op(reg, &def); }}\n"
        )
    }

    #[test]
    fn a_plugins_op_runs_like_a_built_in_one() {
        let pool = pool();
        assert_eq!(pool.load(compile("wordcount", "")).expect("load"), ["wordcount"]);
        assert!(pool.op_names().contains(&"wordcount".to_owned()));
        let v = run(&pool, "wordcount", b"one three  fourteen\n", &Value::Nil).expect("run");
        assert_eq!((v.get("words").and_then(Value::as_int), v.get("longest").and_then(Value::as_int)), (Some(3), Some(8)));
        let v = run(&pool, "wordcount", b"one three", &Value::map([("min_length", Value::Int(4))])).expect("run");
        assert_eq!(v.get("words").and_then(Value::as_int), Some(1));
        let e = run(&pool, "wordcount", b"", &Value::map([("min_length", Value::Int(0))])).expect_err("range");
        assert_eq!(e.to_string(), "invalid: option min_length is no integer above 0");
        // Another pool does not know it.
        assert_eq!(run(&self::pool(), "wordcount", b"", &Value::Nil).expect_err("unknown").kind(), ErrorKind::NotFound);
    }

    #[test]
    fn input_and_result_are_not_copied() {
        let body = "offloop_buffer *b; offloop_value *v; int32_t s; uint8_t *p; size_t n;\n\
            if ((s = offloop->ctx_take_input(ctx, 0, &b)) || (s = offloop->buffer_data(b, &p, &n))) return s;\n\
            p[0] = '!'; if ((s = offloop->value_new_buffer(&b, &v))) return s; return offloop->ctx_set_result(ctx, &v);";
        let pool = pool();
        pool.load(compile("inplace", &with_op("t.inplace", body, ""))).expect("load");
        let mut input = crate::TransferBuffer::from_slice(&vec![b'x'; 1 << 20]).expect("alloc");
        let (_, at, _) = input.view().expect("view");
        let inputs = vec![input.take_bytes().expect("bytes")];
        let out = pool.submit_op("t.inplace", inputs, &Value::Nil, SubmitOptions::default()).expect("submit").wait(None);
        let out = out.and_then(Value::into_bytes).expect("bytes");
        assert_eq!((out.as_ptr(), out[0], out[1]), (at.cast_const(), b'!', b'x'));
    }

    #[test]
    fn what_cannot_be_loaded_is_a_clear_error() {
        let pool = pool();
        let text = compile("empty_text", "/* a library without the symbol */ typedef int x;\n");
        let cases = [
            (PathBuf::from("/no/such/plugin.so"), ErrorKind::NotFound, "no plugin of that path"),
            (PathBuf::from("/a\0b"), ErrorKind::Invalid, "path=/a\\0b"),
            (root().join("Cargo.toml"), ErrorKind::Invalid, "can be loaded"),
            (text, ErrorKind::NotFound, "exports no offloop_plugin"),
            (compile("abi", &with_op("t.abi", "return 0;", "def.abi_version = 99;")), ErrorKind::Version, "plugin_abi=99"),
            (compile("size", &with_op("t.size", "return 0;", "def.struct_size = 8;")), ErrorKind::Invalid, "struct_size"),
            (compile("dup", &with_op("t.dup", "return 0;", "host->register_op(reg, &def);")), ErrorKind::Exists, "twice"),
            (compile("builtin", &with_op("noop", "return 0;", "")), ErrorKind::Exists, "op=noop"),
            (compile("name", &with_op("Bad Name", "return 0;", "")), ErrorKind::Invalid, "op name"),
            (compile("nofn", &with_op("t.nofn", "return 0;", "def.function = NULL;")), ErrorKind::Invalid, "no function"),
            (compile("none", &with_op("t.none", "return 0;", "if (reg) return 0;")), ErrorKind::Invalid, "registered no op"),
            (compile("refuse", &with_op("t.no", "return 0;", "if (reg) return 5;")), ErrorKind::TaskFailed, "status=5"),
        ];
        for (path, kind, text) in cases {
            let e = pool.load(&path).expect_err(text);
            assert_eq!(e.kind(), kind, "{e}");
            assert!(e.to_string().contains(text), "{e}");
            assert!(!e.to_string().ends_with("plugin=)"), "{e}");
        }
        let good = compile("once", &with_op("t.once", "return 0;", ""));
        pool.load(&good).expect("first");
        assert_eq!(pool.load(&good).expect_err("again").kind(), ErrorKind::Exists);
        assert!(run(&pool, "t.once", b"", &Value::Nil).is_ok(), "the first load still works");
    }

    #[test]
    fn the_library_stays_while_its_function_runs_and_its_argument_is_freed_once() {
        // The counter lies in the test, because the library is gone when it is read.
        static mut FREED: u32 = 0;
        let counter = (&raw mut FREED).addr();
        let text = with_op(
            "t.slow",
            "while (offloop->ctx_cancelled(ctx) == 0) {} return 0;",
            &format!("def.arg = (void *)(uintptr_t){counter}; def.arg_free = freed;"),
        )
        .replacen(PREFIX, &format!("{PREFIX}static void freed(void *p) {{ ++*(uint32_t *)p; }}\n"), 1);
        let pool = pool();
        pool.load(compile("slow", &text)).expect("load");
        let task = pool.submit_op("t.slow", vec![], &Value::Nil, SubmitOptions::default()).expect("submit");
        while !task.is_running() {
            std::thread::yield_now();
        }
        drop(pool); // the op still runs, with its code
        task.cancel();
        assert_eq!(task.wait(None).expect_err("cancelled").kind(), ErrorKind::Cancelled);
        drop(task);
        // SAFETY: read as an atomic, which the C code's plain increment does not race once it is visible.
        let freed = unsafe { std::sync::atomic::AtomicU32::from_ptr(&raw mut FREED) };
        while freed.load(std::sync::atomic::Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        assert_eq!(freed.load(std::sync::atomic::Ordering::Acquire), 1);
    }
}
