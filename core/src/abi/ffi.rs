//! The boundary: panics become a status, arguments are checked, nothing unwinds into C.

use crate::abi::handle::{self, Handle, Kinded, Object, Reserved};
use crate::error::{Error, ErrorKind, Result};
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_char, c_void};
use std::mem::{align_of, size_of};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What every fallible function returns: 0 is success, below zero an error of the table.
pub type offloop_status = i32;

/// The status of success.
pub const OK: offloop_status = 0;

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
    static KEEP_ARGS: Cell<bool> = const { Cell::new(false) };
    #[cfg(feature = "failpoints")]
    static PANIC_NEXT: Cell<bool> = const { Cell::new(false) };
}

/// Makes the next call of this thread panic inside its boundary. Only in builds with the feature `failpoints`.
#[cfg(feature = "failpoints")]
pub fn panic_next() {
    PANIC_NEXT.with(|p| p.set(true));
}

fn failpoint() {
    #[cfg(feature = "failpoints")]
    if PANIC_NEXT.with(|p| p.replace(false)) {
        panic!("failpoint");
    }
}

/// Text without NUL bytes, as a C string.
fn c_string(text: String) -> CString {
    let mut bytes = text.into_bytes();
    bytes.retain(|b| *b != 0);
    CString::new(bytes).unwrap_or_default()
}

fn set_last(e: &Error) {
    // Fails only while the thread ends; there is nobody left to ask for the message.
    let _ = LAST.try_with(|last| *last.borrow_mut() = c_string(e.to_string()));
}

/// This thread's last message; empty before the first error.
pub(crate) fn last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

fn panic_error(payload: &(dyn std::any::Any + Send)) -> Error {
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    Error::new(ErrorKind::Panic, "panic inside the library").with("panic", text.unwrap_or("no text"))
}

/// Runs `f`; an error or a panic becomes its status and this thread's message.
pub fn call(f: impl FnOnce() -> Result<()>) -> offloop_status {
    match catch_unwind(AssertUnwindSafe(|| {
        failpoint();
        f()
    })) {
        Ok(Ok(())) => OK,
        Ok(Err(e)) => {
            set_last(&e);
            e.status()
        }
        Err(payload) => {
            set_last(&panic_error(&*payload));
            // The payload's own drop may panic as well; then a leak is the lesser evil.
            if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                std::mem::forget(second);
            }
            ErrorKind::Panic.status()
        }
    }
}

/// As [`call`] for a function that returns something else.
pub fn call_or<R>(otherwise: R, f: impl FnOnce() -> R) -> R {
    let mut out = otherwise;
    call(|| {
        out = f();
        Ok(())
    });
    out
}

fn check_pointer<T>(p: *const T, what: &'static str) -> Result<()> {
    if p.is_null() {
        return Err(Error::invalid("pointer is NULL").with("argument", what));
    }
    if !p.cast::<u8>().addr().is_multiple_of(align_of::<T>()) {
        return Err(Error::invalid("pointer is misaligned")
            .with("argument", what)
            .with("pointer", format_args!("{:#x}", p.addr()))
            .with("align", align_of::<T>()));
    }
    Ok(())
}

/// A checked place for a result.
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Writes the result.
    pub fn set(self, value: T) {
        // SAFETY: checked for NULL and alignment in `out`; the caller of the C function vouches for the memory.
        unsafe { self.0.write(value) }
    }
}

/// A result parameter: NULL and misaligned ones are refused before anything happens.
///
/// # Errors
/// `Invalid`.
pub fn out<T>(p: *mut T, what: &'static str) -> Result<Out<T>> {
    check_pointer(p, what)?;
    Ok(Out(p))
}

/// A result parameter that may be NULL.
///
/// # Errors
/// `Invalid` when it is misaligned.
pub fn out_opt<T>(p: *mut T, what: &'static str) -> Result<Option<Out<T>>> {
    if p.is_null() { Ok(None) } else { out(p, what).map(Some) }
}

/// A NUL-terminated UTF-8 text.
///
/// # Errors
/// `Invalid` for NULL and for bytes that are not UTF-8.
///
/// # Safety
/// `p` is NULL or NUL-terminated; the text is used only while the caller's call lasts.
pub unsafe fn str<'a>(p: *const c_char, what: &'static str) -> Result<&'a str> {
    check_pointer(p, what)?;
    // SAFETY: not NULL, NUL-terminated by contract.
    let bytes = unsafe { CStr::from_ptr(p) }.to_bytes();
    utf8(bytes, what)
}

fn utf8<'a>(bytes: &'a [u8], what: &'static str) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|e| Error::invalid("text is not UTF-8").with("argument", what).with("valid_bytes", e.valid_up_to()))
}

/// Says that a text ends at its NUL byte.
pub const NUL_TERMINATED: usize = usize::MAX;

/// A text of `len` bytes, or up to its NUL byte when `len` is [`NUL_TERMINATED`].
///
/// # Errors
/// `Invalid` for NULL with a length, a length beyond memory, bytes that are not UTF-8.
///
/// # Safety
/// As `slice`, or `str`.
pub unsafe fn text<'a>(p: *const c_char, len: usize, what: &'static str) -> Result<&'a str> {
    if len == NUL_TERMINATED {
        // SAFETY: NUL-terminated by contract.
        return unsafe { str(p, what) };
    }
    // SAFETY: same contract.
    utf8(unsafe { slice(p.cast::<u8>(), len, what) }?, what)
}

/// `len` elements. NULL is allowed for none.
///
/// # Errors
/// `Invalid` for NULL with a length, misalignment, a length beyond memory.
///
/// # Safety
/// `p` points at `len` elements that are not written while the caller's call lasts.
pub unsafe fn slice<'a, T>(p: *const T, len: usize, what: &'static str) -> Result<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    check_pointer(p, what)?;
    let bytes = len.checked_mul(size_of::<T>()).filter(|n| *n <= isize::MAX as usize && p.addr().checked_add(*n).is_some());
    if bytes.is_none() {
        return Err(Error::invalid("length is beyond memory").with("argument", what).with("len", len));
    }
    // SAFETY: not NULL, aligned, in bounds of the address space; the rest by contract.
    Ok(unsafe { std::slice::from_raw_parts(p, len) })
}

/// An options struct that begins with `struct_size`.
///
/// # Safety
/// `repr(C)`, plain data for which all-zero is valid and means "default everywhere", first field `struct_size: usize`.
pub unsafe trait Options: Copy {
    /// The size of the struct in its first release.
    const MIN_SIZE: usize;
    /// The name of the struct for messages.
    const NAME: &'static str;
}

/// The largest options struct that is looked at: a wrong `struct_size` is found before memory is read far beyond it.
const MAX_OPTIONS: usize = 4096;

/// The `struct_size` of a struct, if that is possible.
///
/// # Safety
/// As [`options`].
unsafe fn struct_size<T: Options>(p: *const T) -> Result<usize> {
    check_pointer(p, T::NAME)?;
    // SAFETY: the first field is `struct_size: usize` by the contract of `Options`.
    let size = unsafe { p.cast::<usize>().read() };
    if !(T::MIN_SIZE..=MAX_OPTIONS).contains(&size) {
        return Err(Error::invalid("struct_size is not that of the struct")
            .with("struct", T::NAME)
            .with("struct_size", size)
            .with("known_size", size_of::<T>()));
    }
    Ok(size)
}

/// A checked place for a struct whose length the caller says.
pub struct Filled<T> {
    place: *mut T,
    /// What the caller says.
    pub struct_size: usize,
}

impl<T: Options> Filled<T> {
    /// Writes as much as both sides know; the rest of a longer struct stays as it is.
    pub fn set(self, value: T) {
        let known = self.struct_size.min(size_of::<T>());
        // SAFETY: the place is `struct_size` bytes long by the contract of `filled`, `value` is not shorter than `known`.
        unsafe { std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), self.place.cast::<u8>(), known) };
    }
}

/// A result struct of any version, of which nothing but `struct_size` is read.
///
/// # Errors
/// `Invalid` for NULL, misalignment or an impossible `struct_size`.
///
/// # Safety
/// `p` is NULL or points at as many writable bytes as its `struct_size` says.
pub unsafe fn filled<T: Options>(p: *mut T) -> Result<Filled<T>> {
    // SAFETY: same contract.
    Ok(Filled { place: p, struct_size: unsafe { struct_size(p) }? })
}

/// Reads an options struct of any version. NULL is all defaults; what is missing at the end is zero; bytes beyond the known
/// struct must be zero.
///
/// # Errors
/// `Invalid` for misalignment or an impossible `struct_size`, `Version` for options that this library does not know.
///
/// # Safety
/// `p` is NULL or points at as many readable bytes as its `struct_size` says.
pub unsafe fn options<T: Options>(p: *const T) -> Result<T> {
    // SAFETY: all-zero is valid by the contract of `Options`.
    let mut value: T = unsafe { std::mem::zeroed() };
    if p.is_null() {
        return Ok(value);
    }
    // SAFETY: same contract.
    let size = unsafe { struct_size(p) }?;
    let known = size.min(size_of::<T>());
    // SAFETY: `size` readable bytes by contract, `known` is at most that and at most the size of `value`.
    unsafe { std::ptr::copy_nonoverlapping(p.cast::<u8>(), (&raw mut value).cast::<u8>(), known) };
    // SAFETY: `size` readable bytes by contract.
    let tail = unsafe { std::slice::from_raw_parts(p.cast::<u8>().add(known), size - known) };
    if tail.iter().any(|b| *b != 0) {
        return Err(Error::new(ErrorKind::Version, "struct has options of a newer library")
            .with("struct", T::NAME)
            .with("struct_size", size)
            .with("known_size", size_of::<T>()));
    }
    Ok(value)
}

/// A parameter that a call moves: taken out of the table now, put back unless [`Moved::done`] is reached.
pub struct Moved<T: Kinded> {
    reserved: Reserved,
    place: *mut *mut T,
}

impl<T: Kinded> Moved<T> {
    /// The object, still the caller's.
    pub fn object(&mut self) -> &mut Object {
        self.reserved.object()
    }

    /// The call has succeeded: the handle ends and the caller's pointer becomes NULL.
    #[must_use]
    pub fn done(self) -> Object {
        // SAFETY: checked in `moved`.
        unsafe { self.place.write(std::ptr::null_mut()) };
        self.reserved.commit()
    }
}

/// Reads a `T **x_io` parameter.
///
/// # Errors
/// `Invalid` for NULL, misalignment and bad handles; `InUse`.
///
/// # Safety
/// `place` is NULL or points at a handle of the caller.
pub unsafe fn moved<T: Kinded>(place: *mut *mut T, what: &'static str) -> Result<Moved<T>> {
    check_pointer(place, what)?;
    // SAFETY: not NULL, aligned, the caller's memory.
    let handle = Handle::of(unsafe { place.read() });
    Ok(Moved { reserved: handle::reserve(handle, T::KIND)?, place })
}

/// What an option is that this library does not know.
///
/// # Errors
/// `Version` where it is not 0.
pub fn unused(name: &'static str, value: u32) -> Result<()> {
    if value == 0 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Version, "struct has options of a newer library").with(name, value))
}

/// A duration: below zero is `None` (for ever).
#[must_use]
pub fn forever_or(ns: i64) -> Option<std::time::Duration> {
    u64::try_from(ns).ok().map(std::time::Duration::from_nanos)
}

/// A user's pointer with its free function, which is called exactly once: when this is dropped, on whatever thread. While
/// [`keep_args`] runs it is not called, because the call failed and the pointer stays the caller's.
pub struct UserArg {
    arg: *mut c_void,
    free: Option<unsafe extern "C" fn(*mut c_void)>,
}

// SAFETY: the contract of every function that takes such a pointer says that it is used and freed on any thread.
unsafe impl Send for UserArg {}
// SAFETY: `&UserArg` gives out the pointer only.
unsafe impl Sync for UserArg {}

impl UserArg {
    /// Takes over `arg`.
    #[must_use]
    pub fn new(arg: *mut c_void, free: Option<unsafe extern "C" fn(*mut c_void)>) -> UserArg {
        UserArg { arg, free }
    }

    /// The pointer.
    #[must_use]
    pub fn get(&self) -> *mut c_void {
        self.arg
    }
}

impl Drop for UserArg {
    fn drop(&mut self) {
        let kept = KEEP_ARGS.try_with(Cell::get).unwrap_or(false);
        if let Some(free) = self.free.filter(|_| !kept) {
            // SAFETY: the user's function for the user's pointer, once; it may not unwind (`extern "C"`).
            unsafe { free(self.arg) }
        }
    }
}

/// Drops what a failed call gave back; the users' pointers in it stay theirs.
pub fn keep_args<T>(given_back: T) {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            let _ = KEEP_ARGS.try_with(|k| k.set(false));
        }
    }
    let _ = KEEP_ARGS.try_with(|k| k.set(true));
    let _reset = Reset;
    drop(given_back);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct V1 {
        struct_size: usize,
        a: u64,
    }
    // SAFETY: plain data.
    unsafe impl Options for V1 {
        const MIN_SIZE: usize = size_of::<V1>();
        const NAME: &'static str = "v1";
    }
    #[repr(C)]
    struct V2 {
        v1: V1,
        b: u64,
    }

    fn read(v2: &V2) -> Result<V1> {
        // SAFETY: the struct is as long as any size that the tests claim and the reader accepts.
        unsafe { options((&raw const *v2).cast::<V1>()) }
    }

    #[test]
    fn options_of_a_newer_header_are_read_if_the_new_part_is_unused() {
        let mut o = V2 { v1: V1 { struct_size: size_of::<V2>(), a: 7 }, b: 0 };
        assert_eq!(read(&o).expect("zero tail").a, 7);
        o.b = 1;
        assert_eq!(read(&o).err().map(|e| e.kind()), Some(ErrorKind::Version));
        for wrong in [0, 8, 15, 5000, usize::MAX] {
            o.v1.struct_size = wrong;
            assert_eq!(read(&o).err().map(|e| e.kind()), Some(ErrorKind::Invalid), "{wrong}");
        }
    }

    #[test]
    fn a_result_struct_of_a_newer_header_is_filled_as_far_as_it_is_known() {
        let mut o = V2 { v1: V1 { struct_size: size_of::<V2>(), a: 0xaaaa }, b: 0xaaaa };
        // SAFETY: the struct is as long as it says.
        let place = unsafe { filled((&raw mut o).cast::<V1>()) }.expect("what its tail holds does not matter");
        let struct_size = place.struct_size;
        place.set(V1 { struct_size, a: 7 });
        assert_eq!((o.v1.struct_size, o.v1.a, o.b), (size_of::<V2>(), 7, 0xaaaa));
        // SAFETY: refused before more than the size is read.
        assert_eq!(unsafe { filled(std::ptr::null_mut::<V1>()) }.err().map(|e| e.kind()), Some(ErrorKind::Invalid));
        o.v1.struct_size = 8;
        // SAFETY: as above.
        assert_eq!(unsafe { filled((&raw mut o).cast::<V1>()) }.err().map(|e| e.kind()), Some(ErrorKind::Invalid));
    }

    #[test]
    fn a_panic_becomes_a_status_and_a_message() {
        let status = call(|| panic!("wrong\0text"));
        assert_eq!(status, ErrorKind::Panic.status());
        // SAFETY: the pointer is this thread's last message.
        let text = unsafe { CStr::from_ptr(last_error()) }.to_str().expect("utf-8");
        assert_eq!(text, "panic: panic inside the library (panic=wrongtext)");
    }

    #[test]
    fn slices_refuse_null_misalignment_and_lengths_beyond_memory() {
        let x = [1u64, 2];
        // SAFETY: bad arguments are refused before they are read.
        unsafe {
            assert_eq!(slice(x.as_ptr(), 2, "x").expect("good"), &[1, 2]);
            assert!(slice(std::ptr::null::<u64>(), 0, "x").expect("none").is_empty());
            assert!(slice(std::ptr::null::<u64>(), 1, "x").is_err());
            assert!(slice(x.as_ptr().byte_add(1), 1, "x").is_err());
            assert!(slice(x.as_ptr(), usize::MAX / 8, "x").is_err());
            assert!(slice(x.as_ptr().cast::<u8>(), usize::MAX - 1, "x").is_err());
            assert!(text(c"a\xff".as_ptr(), NUL_TERMINATED, "x").is_err());
        }
    }

    #[test]
    fn a_users_pointer_is_freed_once_or_kept_on_failure() {
        unsafe extern "C" fn count(p: *mut c_void) {
            // SAFETY: the test passes a pointer to its own counter.
            unsafe { *p.cast::<u32>() += 1 };
        }
        let mut n = 0u32;
        drop(UserArg::new((&raw mut n).cast(), Some(count)));
        assert_eq!(n, 1);
        keep_args(UserArg::new((&raw mut n).cast(), Some(count)));
        assert_eq!(n, 1);
        drop(UserArg::new((&raw mut n).cast(), Some(count)));
        assert_eq!(n, 2);
    }
}
