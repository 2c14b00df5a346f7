//! A TCP stream between namespaces, both ways at once.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};

use crate::scratch::Netns;

/// Has every byte go to `server`, which listens on `address`, and come back. Panics where one is lost, wrong or late.
#[track_caller]
pub fn passes(client: &Netns, server: &Netns, address: &'static str, length: usize) {
    let listener = server.run(move || TcpListener::bind(address).unwrap());
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::copy(&mut stream.try_clone().unwrap(), &mut stream).unwrap()
    });
    let mut stream = client.run(move || TcpStream::connect(address).unwrap());
    let mut writer = stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        for chunk in noise().take(length).collect::<Vec<u8>>().chunks(1 << 16) {
            writer.write_all(chunk).unwrap();
        }
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut returned = Vec::with_capacity(length);
    stream.read_to_end(&mut returned).unwrap();
    writing.join().unwrap();
    assert_eq!(echo.join().unwrap(), length as u64, "{address}");
    assert!(returned.iter().copied().eq(noise().take(length)), "{address}: other bytes");
}

/// Bytes that look random and are the same each time.
pub fn noise() -> impl Iterator<Item = u8> {
    let mut state = 1_u32;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
}
