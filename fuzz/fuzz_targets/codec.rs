//! Any bytes are read or refused; what was read is written, and read again as the same message.
#![no_main]

use libfuzzer_sys::fuzz_target;
use offloop::codec::{self, Options};
use offloop::{ErrorKind, TransferBuffer, Value};

fn buffers() -> [Option<TransferBuffer>; 2] {
    [(); 2].map(|()| Some(TransferBuffer::from_slice(b"beside").expect("memory")))
}

fn written(value: &Value, options: &Options) -> Vec<u8> {
    let mut out = Vec::new();
    codec::encode(value, options, &mut out).expect("what was read within the limits is written within them");
    out
}

fuzz_target!(|message: &[u8]| {
    let options = Options { out_of_band: Some(usize::MAX), ..Options::default() };
    match codec::decode(message, &mut buffers(), &options) {
        Ok(value) => {
            let first = written(&value, &options);
            let again = codec::decode_owned(first.clone().into(), &mut buffers(), &options).expect("what was written is read");
            assert_eq!(first, written(&again, &options));
        }
        Err(e) => assert!(matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::TooLarge), "{e}"),
    }
});
