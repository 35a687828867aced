//! bcrypt (Provos and Mazières, "A Future-Adaptable Password Scheme", 1999) on the Blowfish of its crate, round by round so
//! that it can stop.

use crate::error::{Error, Result};
use crate::ops::OpCtx;
use blowfish::Blowfish;

/// bcrypt makes 24 bytes; its strings keep 23.
pub(super) const HASH_LEN: usize = 23;

/// Bytes of a password that bcrypt reads, its closing zero included.
const MAX_PASSWORD: usize = 72;

/// Rounds between two looks at the token: about 3 ms.
const STEP: u32 = 64;

/// Refuses passwords of which bcrypt, in this or in another library, would read only a part.
pub(super) fn check_password(op: &'static str, password: &[u8]) -> Result<()> {
    if password.len() > MAX_PASSWORD {
        return Err(Error::invalid("bcrypt reads 72 bytes of a password").with("op", op).with("password_len", password.len()));
    }
    if password.contains(&0) {
        return Err(Error::invalid("bcrypt reads a password up to its first zero byte").with("op", op));
    }
    Ok(())
}

/// The password has passed [`check_password`].
pub(super) fn bcrypt(ctx: &OpCtx<'_>, cost: u8, salt: [u8; 16], password: &[u8]) -> Result<[u8; 24]> {
    // "OrpheanBeholderScryDoubt" as big-endian words.
    let mut text: [u32; 6] = [0x4f72_7068, 0x6561_6e42, 0x6568_6f6c, 0x6465_7253, 0x6372_7944, 0x6f75_6274];
    let mut key = password.to_vec();
    key.push(0);
    key.truncate(MAX_PASSWORD);
    let mut state = Blowfish::bc_init_state();
    state.salted_expand_key(&salt, &key);
    for round in 0..1u32 << cost {
        if round % STEP == 0 {
            ctx.check()?;
        }
        state.bc_expand_key(&key);
        state.bc_expand_key(&salt);
    }
    for pair in text.chunks_exact_mut(2) {
        for _ in 0..64 {
            let [left, right] = state.bc_encrypt([pair[0], pair[1]]);
            pair.copy_from_slice(&[left, right]);
        }
    }
    let mut out = [0; 24];
    out.chunks_exact_mut(4).zip(text).for_each(|(bytes, word)| bytes.copy_from_slice(&word.to_be_bytes()));
    Ok(out)
}
