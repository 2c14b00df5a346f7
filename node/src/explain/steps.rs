//! From the facts of both hosts to the steps of the way. Pure.

use gossip::id::HostId;
use gossip::record::MemberState;

use super::{Answer, End, Explanation, Fact, Kind, Own, Probes, Side, Sight, Stands, State, Step};

/// A session is used for so long without a new handshake (WireGuard's REJECT_AFTER_TIME), in seconds.
const SESSION_S: u64 = 180;

/// Walks the way from one member to the other, given what both hosts said.
pub fn walk(from: End, to: End, near: &Side, far: &Side) -> Explanation {
    let way = Way { from: &from, to: &to, near, far };
    let both = |step: fn(&End, &End, &Side) -> Step| {
        [step(way.from, way.to, way.near), step(way.to, way.from, way.far)]
    };
    let mut steps = vec![way.name()];
    steps.extend(both(record));
    steps.extend(both(claim));
    steps.extend(both(agent));
    for kind in [Kind::Interface, Kind::Peer, Kind::Fabric, Kind::Row, Kind::Neighbour] {
        steps.push(way.kernel(kind, way.from, way.near));
        steps.push(way.kernel(kind, way.to, way.far));
    }
    steps.extend([way.underlay(), way.mtu(), way.handshake(), way.echo()]);
    let broken = steps.iter().find(|step| step.state == State::Broken).map(|step| step.step);
    Explanation { ok: broken.is_none(), broken, steps, from, to }
}

/// The way in question.
struct Way<'a> {
    from: &'a End,
    to: &'a End,
    near: &'a Side,
    far: &'a Side,
}

fn good(step: Kind, host: Option<&HostId>, detail: impl Into<String>) -> Step {
    Step { step, host: host.cloned(), state: State::Ok, detail: detail.into(), hint: None }
}

fn broken(step: Kind, host: Option<&HostId>, detail: impl Into<String>, hint: impl Into<String>) -> Step {
    let hint = Some(hint.into());
    Step { step, host: host.cloned(), state: State::Broken, detail: detail.into(), hint }
}

fn unknown(step: Kind, host: Option<&HostId>, detail: impl Into<String>) -> Step {
    Step { step, host: host.cloned(), state: State::Unknown, detail: detail.into(), hint: None }
}

fn unheard(step: Kind, host: &HostId) -> Step {
    unknown(step, Some(host), "its agent did not say")
}

impl Way<'_> {
    fn name(&self) -> Step {
        let (host, name) = (Some(&self.from.host), &self.to.name);
        let Ok(Sight { resolves: Some(addresses), .. }) = &self.near.sight else {
            return unheard(Kind::Name, &self.from.host);
        };
        let others = addresses.len().saturating_sub(1);
        if addresses.contains(&self.to.address.into()) {
            let more = if others == 0 { String::new() } else { format!(", and {others} more") };
            return good(Kind::Name, host, format!("its name resolves to {}{more}", self.to.address));
        }
        let detail = match addresses.as_slice() {
            [] => format!("{name} does not resolve"),
            _ => format!("{name} resolves to {} others, not to {}", addresses.len(), self.to.address),
        };
        broken(
            Kind::Name,
            host,
            detail,
            "a name leads to members that are ready and whose host answers: see the steps below",
        )
    }

    fn kernel(&self, step: Kind, end: &End, side: &Side) -> Step {
        let host = Some(&end.host);
        let Ok(sight) = &side.sight else { return unheard(step, &end.host) };
        let (stands, own) = match (&sight.kernel, &sight.own) {
            (Ok(stands), Some(own)) => (stands, own),
            (Err(why), _) => return unknown(step, host, why.clone()),
            (Ok(_), None) => return unheard(step, &end.host),
        };
        let wrong: Vec<&str> =
            stands.wrong.iter().filter(|wrong| wrong.step == step).map(|wrong| wrong.what.as_str()).collect();
        if wrong.is_empty() {
            return good(step, host, as_it_is(step, stands, own));
        }
        let fact = fact_of(step, stands).map(compared).unwrap_or_default();
        broken(step, host, format!("{}{fact}", wrong.join("; ")), MENDED)
    }

    fn underlay(&self) -> Step {
        let Some(probes) = &self.near.probes else {
            return unknown(Kind::Underlay, None, "nothing could be sent");
        };
        let local = self.from.host == self.to.host;
        match &probes.fabric {
            Answer::Micros(micros) if local => {
                good(Kind::Underlay, None, format!("one host: by its bridge and back in {}", millis(*micros)))
            }
            Answer::Micros(micros) => {
                good(Kind::Underlay, None, format!("by VXLAN and back in {}", millis(*micros)))
            }
            Answer::Silent | Answer::Refused(_) => {
                broken(Kind::Underlay, None, self.lost(probes), self.firewall())
            }
        }
    }

    /// In which direction packets are lost, as far as the other host's count of them says.
    fn lost(&self, probes: &Probes) -> String {
        let (a, b) = (&self.from.host, &self.to.host);
        let arrived = |side: &Side| Some(side.heard? > side.sight.as_ref().ok()?.heard);
        if let Answer::Refused(why) = &probes.fabric {
            return format!("{a} cannot send to {b} by VXLAN: {why}");
        }
        match (arrived(self.far), arrived(self.near)) {
            (Some(true), Some(true)) => {
                format!("requests of {a} and {b} arrive at the other, replies do not")
            }
            (Some(true), _) => format!("packets of {a} arrive at {b}, those of {b} do not arrive at {a}"),
            (Some(false), Some(true)) => {
                format!("packets of {b} arrive at {a}, those of {a} do not arrive at {b}")
            }
            (Some(false), _) => format!("no VXLAN packet arrives, neither of {a} at {b} nor of {b} at {a}"),
            (None, _) => format!("no reply of {b} arrives at {a} by VXLAN"),
        }
    }

    fn firewall(&self) -> String {
        let vtep = |side: &Side, end: &End| {
            let own = side.sight.as_ref().ok().and_then(|sight| sight.own.as_ref());
            own.map_or(end.host.to_string(), |own| own.vtep.clone())
        };
        let (a, b) = (vtep(self.near, self.from), vtep(self.far, self.to));
        format!(
            "let UDP pass between {a} and {b}, both ways (host firewalls, security groups); gossip takes another port"
        )
    }

    fn mtu(&self) -> Step {
        let (Some(probes), Ok(Sight { own: Some(own), .. })) = (&self.near.probes, &self.near.sight) else {
            return unknown(Kind::Mtu, None, "nothing could be sent");
        };
        if !probes.fabric.arrived() {
            return unknown(Kind::Mtu, None, "nothing passes");
        }
        let full = own.fabric_mtu;
        if probes.fabric_full.arrived() {
            return good(
                Kind::Mtu,
                None,
                format!("packets of {full} bytes pass, of {} inside WireGuard", own.mtu),
            );
        }
        let passes = probes.passes.map_or(String::new(), |bytes| format!(", up to {bytes} do"));
        let shrunk = [(self.from, self.near), (self.to, self.far)].into_iter().filter_map(|(end, side)| {
            let sight = side.sight.as_ref().ok()?;
            let now = sight.underlay_mtu_now.filter(|now| *now < sight.underlay_mtu)?;
            Some(format!(
                "; {}'s underlay has {now} now, {} when its agent started",
                end.host, sight.underlay_mtu
            ))
        });
        let detail = format!("packets of {full} bytes do not pass{passes}{}", shrunk.collect::<String>());
        broken(
            Kind::Mtu,
            None,
            detail,
            "raise the underlay's MTU, or set the lower one on the host's interface or route and restart its agent: \
             the region takes the smallest",
        )
    }

    fn handshake(&self) -> Step {
        let stands = self.near.sight.as_ref().ok().and_then(|sight| sight.kernel.as_ref().ok());
        let Some(stands) = stands else { return unheard(Kind::Handshake, &self.from.host) };
        let host = Some(&self.from.host);
        let through = self.near.probes.as_ref().map(|probes| probes.inside.arrived());
        match (stands.handshake_s, through) {
            (Some(age), _) if age <= SESSION_S => {
                good(Kind::Handshake, host, format!("WireGuard's session is {age} s old"))
            }
            (_, Some(true)) => good(Kind::Handshake, host, "WireGuard has a new session"),
            (age, None) => {
                unknown(Kind::Handshake, host, format!("{}, and nothing could be sent", session(age)))
            }
            (age, Some(false)) => broken(
                Kind::Handshake,
                host,
                format!("{}: no answer to WireGuard's handshakes", session(age)),
                "UDP 51820 between the binding namespaces is dropped, or the other's engine hangs: `warren status` and \
                 `warren doctor` on both hosts",
            ),
        }
    }

    fn echo(&self) -> Step {
        let Some(probes) = &self.near.probes else {
            return unknown(Kind::Echo, None, "nothing could be sent");
        };
        match (&probes.inside, &probes.inside_full) {
            (Answer::Micros(micros), full) if full.arrived() => {
                good(Kind::Echo, None, format!("container to container and back in {}", millis(*micros)))
            }
            (Answer::Micros(_), _) => broken(
                Kind::Echo,
                None,
                "short packets come back, long ones do not",
                "something in a container lowers the path's MTU: see the step mtu, and `ip link` in both",
            ),
            (Answer::Refused(why), _) => broken(
                Kind::Echo,
                None,
                format!("refused: {why}"),
                "see the steps above; `ip route` in the container",
            ),
            (Answer::Silent, _) => broken(
                Kind::Echo,
                None,
                "the other container does not answer",
                "where all above is ok it is the container: a firewall of its own, or icmp_echo_ignore_all; try its port",
            ),
        }
    }
}

const MENDED: &str = "the agent puts it back by itself within 30 s; where it stays so, `warren status` says why, and \
                      warren_drift_total whether somebody removes it again and again";

fn session(age: Option<u64>) -> String {
    age.map_or("WireGuard never had a session".to_owned(), |age| {
        format!("WireGuard's session is {age} s old")
    })
}

fn fact_of(step: Kind, stands: &Stands) -> Option<&Fact> {
    match step {
        Kind::Row => Some(&stands.row),
        Kind::Neighbour => Some(&stands.neighbour),
        Kind::Peer => Some(&stands.peer),
        _ => None,
    }
}

fn compared(fact: &Fact) -> String {
    if fact.is == fact.should {
        return String::new();
    }
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
    format!(": {}, should be {}", text(&fact.is), text(&fact.should))
}

fn as_it_is(step: Kind, stands: &Stands, own: &Own) -> String {
    let is = |fact: &Fact| fact.is.clone().unwrap_or_else(|| "nothing wanted".to_owned());
    match step {
        Kind::Interface => {
            format!("{} of {}: up, {}, MTU {}", own.ifname, own.container, own.address, own.mtu)
        }
        Kind::Peer => is(&stands.peer),
        Kind::Fabric => format!("bridge, vxlan0 and veth up, MTU {}", own.fabric_mtu),
        Kind::Row => format!("frames go to {}", is(&stands.row)),
        Kind::Neighbour => is(&stands.neighbour),
        _ => String::new(),
    }
}

/// Microseconds as people read them.
fn millis(micros: u64) -> String {
    format!("{}.{:02} ms", micros / 1000, micros % 1000 / 10)
}

fn record(here: &End, there: &End, side: &Side) -> Step {
    let host = Some(&here.host);
    let Ok(sight) = &side.sight else { return unheard(Kind::Record, &here.host) };
    match &sight.other {
        Some(known) if known.state == MemberState::Ready => {
            good(Kind::Record, host, format!("has the record of {}: ready", there.member))
        }
        Some(_) => broken(
            Kind::Record,
            host,
            format!("has a record of {} that is not ready: its attach has not ended", there.member),
            format!("wait for the attach on {}, or see its agent's log", there.host),
        ),
        None => broken(
            Kind::Record,
            host,
            format!("has no record of {} on {}", there.member, there.host),
            "gossip has not brought it: `warren hosts` on both, and let UDP 7946 pass between them",
        ),
    }
}

fn claim(here: &End, there: &End, side: &Side) -> Step {
    let Ok(Sight { own: Some(own), other: Some(other), .. }) = &side.sight else {
        return unheard(Kind::Claim, &here.host);
    };
    let lost: Vec<&str> = [(own.holds, here), (other.holds, there)]
        .into_iter()
        .filter(|(holds, _)| !holds)
        .map(|(_, end)| end.member.as_str())
        .collect();
    if lost.is_empty() {
        return good(
            Kind::Claim,
            Some(&here.host),
            format!("{} and {} are held", own.address, other.address),
        );
    }
    broken(
        Kind::Claim,
        Some(&here.host),
        format!("the address of {} is another member's", lost.join(" and of ")),
        "its host gives it another one within seconds: see `warren events` there, then ask again",
    )
}

fn agent(here: &End, there: &End, side: &Side) -> Step {
    let host = Some(&here.host);
    match &side.sight {
        Err(why) => broken(
            Kind::Agent,
            host,
            format!("does not answer: {why}"),
            format!(
                "start the agent on {}, and let UDP 7946 pass; what its containers have already they keep",
                here.host
            ),
        ),
        Ok(Sight { own: None, .. }) => broken(
            Kind::Agent,
            host,
            format!("knows nothing of {}", here.member),
            "its record is of an earlier life of that agent: attach the container again",
        ),
        Ok(sight) => match sight.other.as_ref().map(|other| other.standing.as_str()) {
            Some(standing @ ("dead" | "gone")) => broken(
                Kind::Agent,
                host,
                format!("finds {} {standing}", there.host),
                format!("`warren hosts` on both; let UDP 7946 pass between {} and {}", here.host, there.host),
            ),
            _ => good(Kind::Agent, host, "answers"),
        },
    }
}
