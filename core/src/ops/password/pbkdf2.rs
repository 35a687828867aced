//! PBKDF2 with HMAC (RFC 8018 section 5.2), written out so that it can stop.

use crate::error::Result;
use crate::ops::OpCtx;
use pbkdf2::hmac::{EagerHash, Hmac, KeyInit, Mac};

/// Iterations between two looks at the token: 1 to 3 ms.
const STEP: u32 = 4096;

pub(super) fn pbkdf2<D: EagerHash>(ctx: &OpCtx<'_>, password: &[u8], salt: &[u8], iterations: u32, out: &mut [u8]) -> Result<()>
where
    Hmac<D>: Mac + KeyInit + Clone,
{
    let keyed = <Hmac<D> as KeyInit>::new_from_slice(password).expect("HMAC takes keys of every length");
    let block = keyed.clone().finalize().into_bytes().len();
    for (i, part) in out.chunks_mut(block).enumerate() {
        ctx.check()?;
        let mut mac = keyed.clone();
        mac.update(salt);
        mac.update(&(i as u32 + 1).to_be_bytes());
        let mut u = mac.finalize().into_bytes();
        let mut t = u.clone();
        for n in 1..iterations {
            if n % STEP == 0 {
                ctx.check()?;
            }
            let mut mac = keyed.clone();
            mac.update(&u);
            u = mac.finalize().into_bytes();
            t.iter_mut().zip(&u).for_each(|(t, u)| *t ^= u);
        }
        part.copy_from_slice(&t[..part.len()]);
    }
    Ok(())
}
