//! Queries of every shape, and what chance makes of them. `make fuzz` starts from the same seeds.

#![allow(clippy::unwrap_used, reason = "outside #[test] functions, too, a test panics")]

mod checked;

use checked::{APP, NETWORK, SUFFIX, Scopes};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng, RngExt as _, SeedableRng};

const MUTATIONS: usize = 300_000;
/// Where the fuzzer's seeds are written to, if anywhere.
const CORPUS: &str = "WARREN_CORPUS";

/// Inputs of [`Scopes::check`].
fn seeds() -> Vec<Vec<u8>> {
    let base = format!("{APP}.{NETWORK}.{SUFFIX}");
    let names = [
        base.clone(),
        format!("web.{base}"),
        format!("1.WEB.{base}"),
        format!("_http._tcp.worker.{base}"),
        format!("_tcp.{base}"),
        format!("{NETWORK}.{SUFFIX}"),
        format!("ns.{SUFFIX}"),
        SUFFIX.to_owned(),
        "example.org".into(),
        String::new(),
        "1.0.240.10.in-addr.arpa".into(),
        "3.240.10.in-addr.arpa".into(),
        vec!["l".repeat(63); 3].join("."),
    ];
    let mut seeds = Vec::new();
    for name in &names {
        for rtype in [1_u16, 2, 6, 12, 16, 28, 33, 41, 43, 250, 251, 252, 255] {
            let question = [wire(name), rtype.to_be_bytes().to_vec(), vec![0, 1]].concat();
            for (choice, additional) in [(0_u8, &[][..]), (4, &[]), (1, OPT), (3, OPT)] {
                let header = [0, 42, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(!additional.is_empty())];
                seeds.push([&[choice][..], &header, &question, additional].concat());
            }
        }
    }
    seeds.extend(odd(&wire(&base)));
    seeds
}

const OPT: &[u8] = &[0, 0, 41, 4, 208, 0, 0, 128, 0, 0, 0];

/// Shapes that few clients send: other opcodes, counts, classes, EDNS versions and options, TSIG, pointers.
fn odd(name: &[u8]) -> Vec<Vec<u8>> {
    let question = [name, &[0, 1, 0, 1]].concat();
    let header = |opcode: u8, counts: [u8; 4]| {
        let [questions, answers, authorities, additional] = counts;
        vec![0, 0, 42, opcode << 3, 0, 0, questions, 0, answers, 0, authorities, 0, additional]
    };
    let record = [name, &[0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 0, 0, 1]].concat();
    let tsig = [name, &[0, 250, 0, 255, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4]].concat();
    let option: &[u8] = &[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 12, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
    let version: &[u8] = &[0, 0, 41, 4, 208, 0, 1, 0, 0, 0, 0];
    let mut odd: Vec<Vec<u8>> =
        (0..16).map(|opcode| [header(opcode, [1, 0, 0, 0]), question.clone()].concat()).collect();
    odd.extend([
        header(0, [0; 4]),
        [header(0, [2, 0, 0, 0]), question.clone(), question.clone()].concat(),
        [header(0, [1, 1, 0, 0]), question.clone(), record.clone()].concat(),
        [header(0, [1, 0, 1, 1]), question.clone(), record, OPT.to_vec()].concat(),
        [header(0, [1, 0, 0, 1]), question.clone(), tsig].concat(),
        [header(0, [1, 0, 0, 1]), question.clone(), option.to_vec()].concat(),
        [header(0, [1, 0, 0, 1]), question.clone(), version.to_vec()].concat(),
        [header(0, [1, 0, 0, 2]), question.clone(), OPT.to_vec(), OPT.to_vec()].concat(),
        [header(0, [1, 0, 0, 0]), question.clone(), vec![0; 4200]].concat(),
        [header(0, [1, 0, 0, 0]), vec![0xc0, 12, 0, 1, 0, 1]].concat(),
        [header(0, [1, 0, 0, 0]), name.to_vec(), vec![0, 1, 0, 255]].concat(),
    ]);
    odd
}

fn wire(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    labels.flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).chain([0]).collect()
}

/// An input with bytes changed, dropped, doubled, or joined with another's end.
fn mutated(seeds: &[Vec<u8>], rng: &mut impl Rng) -> Vec<u8> {
    let mut input = seeds.choose(rng).cloned().unwrap_or_default();
    for _ in 0..rng.random_range(1..5) {
        let at = rng.random_range(0..input.len().max(1)).min(input.len());
        match rng.random_range(0..6) {
            0 => input.truncate(at),
            1 => input.splice(at..at, [rng.random()]).for_each(drop),
            2 => input.extend_from_within(at..),
            3 => {
                let other = seeds.choose(rng).map_or(&[][..], |other| &other[at.min(other.len())..]);
                input.splice(at.., other.iter().copied()).for_each(drop);
            }
            _ => input.iter_mut().skip(at).take(1).for_each(|byte| *byte = rng.random()),
        }
    }
    input
}

#[test]
fn queries_of_every_shape_get_a_sound_reply() {
    let (seeds, scopes) = (seeds(), Scopes::new());
    if let Some(dir) = std::env::var_os(CORPUS) {
        for (n, seed) in seeds.iter().enumerate() {
            std::fs::write(std::path::Path::new(&dir).join(format!("seed-{n:04}")), seed).unwrap();
        }
    }
    seeds.iter().for_each(|seed| scopes.check(seed));
    let mut rng = SmallRng::seed_from_u64(1);
    (0..MUTATIONS).for_each(|_| scopes.check(&mutated(&seeds, &mut rng)));
}
