use gossip::record::MemberState;

use super::*;

fn end(host: &str, last: u8) -> End {
    End {
        member: format!("{last:016x}").parse().unwrap(),
        host: host.parse().unwrap(),
        network: "pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c".parse().unwrap(),
        address: Ipv4Addr::new(10, 240, 0, last),
        name: format!("{last}.web"),
        container: None,
    }
}

fn fact(text: &str) -> Fact {
    Fact { should: Some(text.into()), is: Some(text.into()) }
}

fn side(own: u8, other: u8) -> Side {
    let sight = Sight {
        own: Some(Own {
            container: "c".into(),
            ifname: "wg0".into(),
            state: MemberState::Ready,
            address: Ipv4Addr::new(10, 240, 0, own),
            holds: true,
            mtu: 1390,
            fabric_mtu: 1450,
            vtep: format!("192.0.2.{own}:4789"),
        }),
        other: Some(Known {
            state: MemberState::Ready,
            address: Ipv4Addr::new(10, 240, 0, other),
            holds: true,
            standing: "answering".into(),
        }),
        resolves: Some(vec![Ipv4Addr::new(10, 240, 0, other).into()]),
        kernel: Ok(Stands {
            wrong: Vec::new(),
            row: fact("192.0.2.2:4789"),
            neighbour: fact("02:00:00:00:00:01"),
            peer: fact("10.240.0.2:51820"),
            handshake_s: Some(4),
        }),
        underlay_mtu: 1500,
        underlay_mtu_now: Some(1500),
        heard: 3,
    };
    let micros = Answer::Micros(321);
    let probes = Probes {
        fabric: micros.clone(),
        fabric_full: micros.clone(),
        passes: None,
        inside: micros.clone(),
        inside_full: micros,
    };
    Side { sight: Ok(sight), probes: Some(probes), heard: Some(3) }
}

type Harm = fn(&mut Side, &mut Side);

/// The first broken step after `harm`.
fn first(harm: Harm) -> Option<Step> {
    let (mut near, mut far) = (side(1, 2), side(2, 1));
    harm(&mut near, &mut far);
    let explanation = walk(end("a", 1), end("b", 2), &near, &far);
    let broken = explanation.steps.iter().find(|step| step.state == State::Broken).cloned();
    assert_eq!(explanation.broken, broken.as_ref().map(|step| step.step));
    assert_eq!(explanation.ok, broken.is_none());
    broken
}

fn sight(side: &mut Side) -> &mut Sight {
    side.sight.as_mut().unwrap()
}

fn stands(side: &mut Side) -> &mut Stands {
    sight(side).kernel.as_mut().unwrap()
}

fn probes(side: &mut Side) -> &mut Probes {
    side.probes.as_mut().unwrap()
}

fn wrong(side: &mut Side, step: Kind) {
    stands(side).wrong.push(Wrong { step, what: "it is gone".into() });
}

/// Nothing comes back by VXLAN.
fn silent(side: &mut Side) {
    let (fabric, full) = (Answer::Silent, Answer::Silent);
    *probes(side) = Probes {
        fabric,
        fabric_full: full,
        passes: None,
        inside: Answer::Silent,
        inside_full: Answer::Silent,
    };
}

#[test]
fn what_is_whole_is_whole() {
    assert_eq!(first(|_, _| ()), None);
    // An old session is none where nothing was sent; where something came through there is a new one.
    assert_eq!(first(|near, _| stands(near).handshake_s = Some(9_999)), None);
}

#[test]
fn the_first_broken_step_is_the_one_that_is_broken() {
    let cases: Vec<(Kind, Option<&str>, &str, Harm)> = vec![
        (Kind::Name, Some("a"), "does not resolve", |near, _| sight(near).resolves = Some(Vec::new())),
        (Kind::Record, Some("a"), "has no record", |near, _| sight(near).other = None),
        (Kind::Record, Some("b"), "not ready", |_, far| {
            sight(far).other.as_mut().unwrap().state = MemberState::Joining;
        }),
        (Kind::Claim, Some("a"), "another member's", |near, _| {
            sight(near).own.as_mut().unwrap().holds = false
        }),
        (Kind::Agent, Some("b"), "does not answer: timeout", |_, far| {
            *far = Side { sight: Err("timeout".into()), probes: None, heard: None };
        }),
        (Kind::Agent, Some("b"), "finds a dead", |_, far| {
            sight(far).other.as_mut().unwrap().standing = "dead".into();
        }),
        (Kind::Agent, Some("b"), "knows nothing", |_, far| sight(far).own = None),
        (Kind::Interface, Some("b"), "gone", |_, far| wrong(far, Kind::Interface)),
        (Kind::Peer, Some("a"), "gone: nothing, should be 10.240.0.2:51820", |near, _| {
            wrong(near, Kind::Peer);
            stands(near).peer.is = None;
        }),
        (Kind::Fabric, Some("a"), "gone", |near, _| wrong(near, Kind::Fabric)),
        (Kind::Row, Some("b"), "should be 192.0.2.2:4789", |_, far| {
            wrong(far, Kind::Row);
            stands(far).row.is = Some("192.0.2.9:4789".into());
        }),
        (Kind::Neighbour, Some("a"), "gone", |near, _| wrong(near, Kind::Neighbour)),
        (Kind::Underlay, None, "no VXLAN packet arrives", |near, far| {
            silent(near);
            silent(far);
        }),
        (Kind::Underlay, None, "packets of b arrive at a, those of a do not", |near, far| {
            silent(near);
            silent(far);
            near.heard = Some(4);
        }),
        (Kind::Underlay, None, "packets of a arrive at b, those of b do not", |near, far| {
            silent(near);
            silent(far);
            far.heard = Some(5);
        }),
        (Kind::Mtu, None, "up to 1354 do; b's underlay has 1400 now", |near, far| {
            probes(near).fabric_full = Answer::Silent;
            probes(near).passes = Some(1354);
            sight(far).underlay_mtu_now = Some(1400);
        }),
        (Kind::Handshake, Some("a"), "never had a session", |near, _| {
            stands(near).handshake_s = None;
            probes(near).inside = Answer::Silent;
        }),
        (Kind::Echo, None, "does not answer", |near, _| probes(near).inside = Answer::Silent),
        (Kind::Echo, None, "long ones do not", |near, _| probes(near).inside_full = Answer::Silent),
    ];
    for (kind, host, words, harm) in cases {
        let step = first(harm).unwrap_or_else(|| panic!("{kind:?} is found"));
        assert_eq!((step.step, step.host.as_ref().map(HostId::as_str)), (kind, host), "{step:?}");
        assert!(step.detail.contains(words) && step.hint.is_some(), "{step:?}");
    }
}

#[test]
fn what_nobody_could_say_is_unknown_and_not_broken() {
    let gone = Side { sight: Err("timeout".into()), probes: None, heard: None };
    let explanation = walk(end("a", 1), end("b", 2), &side(1, 2), &gone);
    let of =
        |kind| explanation.steps.iter().filter(|step| step.step == kind).map(|step| step.state).next_back();
    assert_eq!(explanation.broken, Some(Kind::Agent));
    for kind in [Kind::Record, Kind::Interface, Kind::Row] {
        assert_eq!(of(kind), Some(State::Unknown), "{kind:?}");
    }
    assert_eq!(of(Kind::Echo), Some(State::Ok), "containers go on");
}
