//! Where tokio's paused clocks begin: each at the moment it is made, unless that is the same for all.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

thread_local!(static STANDS: Cell<bool> = const { Cell::new(false) });

/// What the clocks show that are made while time stands.
const MOMENT: libc::timespec = libc::timespec { tv_sec: 1_000_000, tv_nsec: 0 };

/// Does something in no time, so that the clocks of two runtimes that are made so show the same.
pub fn at_the_beginning<T>(make: impl FnOnce() -> T) -> T {
    STANDS.set(true);
    let made = make();
    STANDS.set(false);
    made
}

/// Takes the place of clock_gettime(2): the same, but for [`at_the_beginning`].
///
/// # Safety
/// `time` points to a `timespec`, as libc demands of its callers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    if clock == libc::CLOCK_MONOTONIC && STANDS.get() {
        // SAFETY: the caller's promise.
        unsafe { time.write(MOMENT) };
        return 0;
    }
    let clock_gettime = LIBCS.load(Ordering::Relaxed);
    // SAFETY: what is there is a clock_gettime, libc's or one of ours; the same arguments, and the same promise.
    unsafe { std::mem::transmute::<*mut c_void, ClockGettime>(clock_gettime)(clock, time) }
}

type ClockGettime = unsafe extern "C" fn(libc::clockid_t, *mut libc::timespec) -> c_int;

/// The clock_gettime(2) whose place is taken, once it was looked up. It asks the vDSO, a page of the kernel's that
/// needs no system call: tokio looks at the clock so often that it is worth a thirtieth of the time.
static LIBCS: AtomicPtr<c_void> = AtomicPtr::new(look_up as *mut c_void);

#[cold]
unsafe extern "C" fn look_up(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    // Whoever looks it up may want to know the time, too.
    LIBCS.store(system_call as *mut c_void, Ordering::Relaxed);
    // SAFETY: RTLD_NEXT is a handle that is always there, and skips this program; the name ends in a zero.
    let next = unsafe { libc::dlsym(libc::RTLD_NEXT, c"clock_gettime".as_ptr()) };
    if !next.is_null() {
        LIBCS.store(next, Ordering::Relaxed);
    }
    // SAFETY: the caller's promise.
    unsafe { system_call(clock, time) }
}

unsafe extern "C" fn system_call(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as c_int }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "it is the machine's clock that is looked at")]
    fn time_stands_where_it_shall_and_nowhere_else() {
        let ticks = || {
            let then = Instant::now();
            std::thread::sleep(Duration::from_millis(2));
            then.elapsed() > Duration::from_millis(1)
        };
        assert!(ticks());
        assert!(!at_the_beginning(ticks));
        assert!(ticks());
        assert_eq!(at_the_beginning(Instant::now), at_the_beginning(Instant::now));
    }
}
