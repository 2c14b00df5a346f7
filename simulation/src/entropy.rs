//! All chance of a run comes from its seed.
//!
//! `rand`, std's `RandomState` and tokio's `select!` draw their seeds from libc's `getrandom`. This one takes
//! its place in the whole process, so that the libraries under test need no seam for chance.

use std::cell::Cell;
use std::ffi::{c_uint, c_void};

thread_local!(static STATE: Cell<u64> = const { Cell::new(0) });

/// Everything random on this thread follows from `seed` from now on. The thread must be fresh: hash keys and
/// `rand`'s generators live in the thread from their first use on.
pub fn seed(seed: u64) {
    STATE.set(seed);
}

/// Takes the place of getrandom(2): never fails and gives all it is asked for.
///
/// # Safety
/// `buffer` holds `length` writable bytes, as libc demands of its callers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, _flags: c_uint) -> isize {
    for at in 0..length {
        // SAFETY: `at` is within what the caller gave.
        unsafe { buffer.cast::<u8>().add(at).write(next() as u8) };
    }
    length as isize
}

/// splitmix64, which has no bad seeds.
fn next() -> u64 {
    let state = STATE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    STATE.set(state);
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher as _, RandomState};
    use std::thread;

    use super::*;

    fn drawn(number: u64) -> (u64, u64) {
        let draw = move || {
            seed(number);
            (rand::random::<u64>(), RandomState::new().hash_one(0))
        };
        thread::spawn(draw).join().unwrap()
    }

    #[test]
    fn chance_follows_the_seed() {
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1).0, drawn(2).0);
        assert_ne!(drawn(1).1, drawn(2).1);
    }
}
