use super::*;

#[test]
fn kernels_are_told_by_their_number() {
    for (release, state) in [
        ("6.12.9-amd64", Health::Ok),
        ("5.14.0", Health::Ok),
        ("5.13.99", Health::Broken),
        ("4.19.0-27", Health::Broken),
        ("plan9", Health::Unknown),
    ] {
        assert_eq!(kernel(release).state, state, "{release}");
    }
}

#[test]
fn certificates_warn_before_they_end() {
    let at = |days: i64| certificate(Ok(("host a of lab", days * 86_400)), 0).state;
    assert_eq!((at(365), at(14), at(13)), (Health::Ok, Health::Ok, Health::Warning));
    assert_eq!(certificate(Err("expired"), 0).state, Health::Broken);
}

#[test]
fn ports_are_read_off_the_kernel_s_table() {
    let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                 10: 00000000:12B5 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 0 2 x 0\n\
                 11: 010200C0:1F0A 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 x 0\n";
    assert_eq!(held(table, 4789), [0].into());
    assert_eq!(held(table, 7946), [4711].into());
    assert!(held(table, 53).is_empty());
}

#[test]
fn ports_are_whose_they_should_be() {
    let process = |name: &str| vec![Holder::Process { pid: 7, name: name.to_owned() }];
    let gossip = |holders: &[Holder], agent| gossip_port(7946, holders, agent).state;
    assert_eq!(gossip(&[], false), Health::Ok);
    assert_eq!(gossip(&[], true), Health::Broken);
    assert_eq!(gossip(&process("warren"), true), Health::Ok);
    assert_eq!(gossip(&process("serf"), false), Health::Broken);
    assert_eq!(vxlan_port(4789, &[Holder::Kernel]).state, Health::Ok);
    assert_eq!(vxlan_port(4789, &process("flanneld")).state, Health::Broken);
}

#[test]
fn what_agents_say_is_judged() {
    let other = |ahead, vxlan| Other { host: "b".parse().unwrap(), clock_ahead_ms: ahead, vxlan };
    let states = |other| {
        let findings = said(&Said { drift: Vec::new(), others: vec![other] }, 4789);
        (findings[1].state, findings[2].state)
    };
    assert_eq!(states(other(Some(-40), Some(Answer::Micros(300)))), (Health::Ok, Health::Ok));
    assert_eq!(states(other(Some(61_000), Some(Answer::Silent))), (Health::Warning, Health::Broken));
    assert_eq!(states(other(None, None)), (Health::Unknown, Health::Unknown));
    let drift = said(&Said { drift: vec!["rows".into()], others: Vec::new() }, 4789);
    assert_eq!(drift[0].state, Health::Warning);
    // Whatever is not as it should be says what to do.
    let all = [kernel("4.1"), disk("/x", Err("no")), disk("/x", Ok(1)), resolver(0, None), resolver(2, None)];
    assert!(all.iter().all(|finding| finding.state > Health::Unknown && finding.hint.is_some()));
}
