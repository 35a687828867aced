//! Generated files are what their functions give. `OFFLOOP_BLESS=1` (`make bless`) rewrites them.

use offloop_tests::{generated, root};

#[test]
fn generated_files_are_up_to_date() {
    let bless = std::env::var_os("OFFLOOP_BLESS").is_some();
    let mut stale = Vec::new();
    for file in generated::ALL {
        let path = root().join(file.path);
        let want = (file.text)();
        if std::fs::read_to_string(&path).is_ok_and(|have| have == want) {
            continue;
        }
        if bless {
            std::fs::create_dir_all(path.parent().expect("a file lies in a directory")).expect("directory");
            std::fs::write(&path, want).expect("write");
            println!("rewrote {}", file.path);
        } else {
            stale.push(file.path);
        }
    }
    assert!(stale.is_empty(), "stale: {stale:?}; run `make bless` and look at the diff");
}
