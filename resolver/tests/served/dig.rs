//! What a well-behaved server answers to unusual but legal queries, asked by dig: RFC 8906 section 8, and the probes
//! of ISC's DNS compliance tester (genreport: its EDNS and FULL groups, and every type of its TYPE group).
//!
//! Where an answer differs from what those expect of a signed public zone, the table says why.

use crate::{APP, NETWORK, SUFFIX, member, serve, zone};
use std::net::SocketAddr;
use std::process::Command;

/// The plain answer: the SOA record, and RA, because Go calls a server lame that neither recurses nor answers.
const SOA: &str = "NOERROR qr aa ra, 1+0";
const SOA_EDNS: &str = "NOERROR qr aa ra, 1+0, EDNS 0";
/// Known name, no such record: the SOA record in the authority section (RFC 2308 §2.2).
const NODATA: &str = "NOERROR qr aa ra, 0+1";
const NODATA_EDNS: &str = "NOERROR qr aa ra, 0+1, EDNS 0";
/// Neither AA nor an answer; the version we do speak (RFC 6891 §6.1.3).
const BADVERS: &str = "BADVERS qr ra, 0+0, EDNS 0";

/// Probe by its number in RFC 8906 or name in genreport, dig's options, what dig is to print.
const PROBES: &[(&str, &str, &str)] = &[
    ("8.1.1, dns", "+noedns +noad +norec SOA ZONE", SOA),
    ("8.1.2", "+noedns +noad +norec TYPE1000 ZONE", NODATA),
    ("type666", "+noedns +noad +norec TYPE666 ZONE", NODATA),
    // CD is copied (RFC 4035 §3.1.6), AD is not: nothing was validated.
    ("8.1.3.1, cd", "+noedns +noad +norec +cd SOA ZONE", "NOERROR qr aa ra cd, 1+0"),
    ("8.1.3.2, ad", "+noedns +norec +ad SOA ZONE", SOA),
    ("8.1.3.3, zflag", "+noedns +noad +norec +zflag SOA ZONE", SOA),
    ("8.1.3.4, rd", "+noedns +noad +rec SOA ZONE", "NOERROR qr aa rd ra, 1+0"),
    ("aa", "+noedns +noad +norec +aaflag SOA ZONE", SOA),
    ("ra", "+noedns +noad +norec +raflag SOA ZONE", SOA),
    ("tc", "+noedns +noad +norec +tcflag SOA ZONE", SOA),
    ("8.1.4, opcode", "+noedns +noad +norec +opcode=15 +header-only", "NOTIMP qr ra, 0+0"),
    (
        "opcodeflg",
        "+noedns +ad +rec +tcflag +raflag +cd +aaflag +zflag +opcode=15 +header-only",
        "NOTIMP qr rd ra cd, 0+0",
    ),
    ("8.1.5, tcp", "+noedns +noad +norec +tcp SOA ZONE", SOA),
    ("8.2.1, edns", "+nocookie +edns=0 +noad +norec SOA ZONE", SOA_EDNS),
    ("8.2.2, edns1", "+nocookie +edns=1 +noednsneg +noad +norec SOA ZONE", BADVERS),
    ("edns100", "+nocookie +edns=100 +noednsneg +noad +norec SOA ZONE", BADVERS),
    ("8.2.3, ednsopt", "+nocookie +edns=0 +noad +norec +ednsopt=100 SOA ZONE", SOA_EDNS),
    ("8.2.4", "+nocookie +edns=0 +noad +norec +ednsflags=0x40 SOA ZONE", SOA_EDNS),
    ("ednsflags", "+nocookie +edns=0 +noad +norec +ednsflags=0x80 SOA ZONE", SOA_EDNS),
    ("8.2.5", "+nocookie +edns=1 +noednsneg +noad +norec +ednsflags=0x40 SOA ZONE", BADVERS),
    ("8.2.6, edns1opt", "+nocookie +edns=1 +noednsneg +noad +norec +ednsopt=100 SOA ZONE", BADVERS),
    // These two ask for DNSKEY because it is large where there is one. The zone is not signed: the large answers
    // are below.
    (
        "8.2.7, edns@512",
        "+nocookie +norec +noad +dnssec +bufsize=512 +ignore DNSKEY ZONE",
        "NOERROR qr aa ra, 0+1, EDNS 0 do",
    ),
    (
        "ednstcp",
        "+nocookie +norec +noad +dnssec +bufsize=512 +tcp DNSKEY ZONE",
        "NOERROR qr aa ra, 0+1, EDNS 0 do",
    ),
    // DO is copied though nothing is signed (RFC 3225 §3).
    ("8.2.8, do", "+nocookie +edns=0 +noad +norec +dnssec SOA ZONE", "NOERROR qr aa ra, 1+0, EDNS 0 do"),
    ("docd", "+nocookie +edns=0 +noad +norec +dnssec +cd SOA ZONE", "NOERROR qr aa ra cd, 1+0, EDNS 0 do"),
    (
        "8.2.9, edns1do",
        "+nocookie +edns=1 +noednsneg +noad +norec +dnssec SOA ZONE",
        "BADVERS qr ra, 0+0, EDNS 0 do",
    ),
    // No option is answered. NSID and EXPIRE tell operators and secondaries apart servers that a container does
    // not have; COOKIE protects from forged sources, and ours is known by its socket; ECS is for what the client's
    // place decides.
    (
        "8.2.10, optlist",
        "+edns=0 +noad +norec +cookie=0102030405060708 +nsid +expire +subnet=0.0.0.0/0 SOA ZONE",
        SOA_EDNS,
    ),
    ("ednsnsid", "+nocookie +edns=0 +noad +norec +nsid SOA ZONE", SOA_EDNS),
    ("ednscookie", "+edns=0 +noad +norec +cookie=0102030405060708 SOA ZONE", SOA_EDNS),
    ("ednsexpire", "+nocookie +edns=0 +noad +norec +expire SOA ZONE", SOA_EDNS),
    ("ednssubnet", "+nocookie +edns=0 +noad +norec +subnet=0.0.0.0/0 SOA ZONE", SOA_EDNS),
    ("edns1nsid", "+nocookie +edns=1 +noednsneg +noad +norec +nsid SOA ZONE", BADVERS),
    ("edns1cookie", "+edns=1 +noednsneg +noad +norec +cookie=0102030405060708 SOA ZONE", BADVERS),
    ("edns1expire", "+nocookie +edns=1 +noednsneg +noad +norec +expire SOA ZONE", BADVERS),
    ("edns1subnet", "+nocookie +edns=1 +noednsneg +noad +norec +subnet=0.0.0.0/0 SOA ZONE", BADVERS),
    (
        "bind11",
        "+edns=0 +noad +norec +cookie=0102030405060708 +dnssec SOA ZONE",
        "NOERROR qr aa ra, 1+0, EDNS 0 do",
    ),
    ("dig11", "+edns=0 +ad +rec +cookie=0102030405060708 SOA ZONE", "NOERROR qr aa rd ra, 1+0, EDNS 0"),
    // A key nobody has is NOTAUTH elsewhere (RFC 8945 §5.2.1). Nothing here depends on who asks: TSIG is ignored.
    (
        "dnswkk",
        "+noedns +noad +norec -y hmac-sha256:.:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= SOA ZONE",
        SOA,
    ),
    // And what their zones do not hold: answers that are cut, with as many whole records as there is room for.
    ("cut at 512", "+noedns +noad +norec +ignore A worker.APP.ZONE", "NOERROR qr aa tc ra, 23+0"),
    (
        "cut at 512, EDNS",
        "+nocookie +noad +norec +bufsize=512 +ignore A worker.APP.ZONE",
        "NOERROR qr aa tc ra, 23+0, EDNS 0",
    ),
    (
        "cut at 1232",
        "+nocookie +noad +norec +bufsize=4096 +ignore A worker.APP.ZONE",
        "NOERROR qr aa tc ra, 68+0, EDNS 0",
    ),
    (
        "cut, then TCP",
        "+nocookie +noad +norec +bufsize=4096 A worker.APP.ZONE",
        "NOERROR qr aa ra, 250+0, EDNS 0",
    ),
    ("no such name", "+nocookie +noad +norec A gone.APP.ZONE", "NXDOMAIN qr aa ra, 0+1, EDNS 0"),
    ("names below it", "+nocookie +noad +norec A ZONE", NODATA_EDNS),
    ("other class", "+nocookie +noad +norec version.bind CH TXT", "REFUSED qr ra, 0+0, EDNS 0"),
    // REFUSED elsewhere: nobody answers for it but the host's resolvers, which this container may not ask.
    // REFUSED elsewhere. Here it says that other names are not passed on, and a client is to go on with its search list.
    ("somebody else's", "+nocookie +noad +rec A example.org", "NXDOMAIN qr rd ra, 0+0, EDNS 0"),
];

/// genreport's TYPE group, less SOA and NS, which the apex has.
const TYPES: &str = "A MD MF CNAME MB MG MR NULL WKS PTR HINFO MINFO MX TXT RP AFSDB X25 ISDN RT NSAP NSAP-PTR SIG KEY \
    PX GPOS AAAA LOC NXT SRV NAPTR KX CERT A6 DNAME APL DS SSHFP IPSECKEY RRSIG NSEC DNSKEY DHCID NSEC3 NSEC3PARAM \
    TLSA SMIMEA HIP CDS CDNSKEY OPENPGPKEY SPF NID L32 L64 LP EUI48 EUI64 URI CAA AVC DOA DLV TYPE1000";

/// The answers of a listener, by dig.
struct Dig(SocketAddr);

impl Dig {
    /// What dig prints for each query of its command line, in a line.
    fn ask(&self, options: &str) -> Vec<String> {
        let zone = format!("{NETWORK}.{SUFFIX}");
        let options = options.replace("ZONE", &zone).replace("APP", APP);
        let output = Command::new("dig")
            .args(["-r", "+tries=1", &format!("@{}", self.0.ip()), "-p", &self.0.port().to_string()])
            .args(options.split(' '))
            .output()
            .expect("`dig` runs (apt-get install bind9-dnsutils)");
        let text = String::from_utf8(output.stdout).unwrap();
        let bad = ["malformed", "extra bytes", "WARNING: Message", "connection timed out", "mismatch"];
        assert!(!bad.iter().any(|word| text.contains(word)), "{options}: {text}");
        let replies: Vec<_> = text.split("->>HEADER<<-").skip(1).map(summary).collect();
        assert!(!replies.is_empty(), "{options}: {text}{}", String::from_utf8_lossy(&output.stderr));
        replies
    }
}

/// `CODE flags, answers+authorities`, and what an OPT record says.
fn summary(reply: &str) -> String {
    let line = |start: &str| reply.lines().find_map(|line| line.split_once(start)).map(|(_, rest)| rest);
    let field = |start: &str| reply.split_once(start).unwrap().1.split([',', ';']).next().unwrap().trim();
    let flags = line(";; flags: ").unwrap().split("; QUERY").next().unwrap();
    let edns = line("; EDNS: version: ").map(|opt| {
        // `0, flags: do; MBZ: 0x0040, udp: 1232`: the size is the same everywhere.
        let opt = opt.strip_suffix("udp: 1232").unwrap_or(opt).replace([',', ';'], "").replace("flags:", "");
        format!(", EDNS {}", opt.split_whitespace().collect::<Vec<_>>().join(" "))
    });
    let options = ["COOKIE", "NSID", "EXPIRE", "CLIENT-SUBNET", "OPT="];
    let options = options.iter().filter(|name| reply.contains(&format!("\n; {name}")));
    let options: String = options.map(|name| format!(" {name}")).collect();
    let (status, answers, authorities) = (field("status: "), field("ANSWER: "), field("AUTHORITY: "));
    format!("{status} {flags}, {answers}+{authorities}{}{options}", edns.unwrap_or_default())
}

#[tokio::test]
async fn compliance_probes_get_what_they_are_to_get() {
    let mut members: Vec<_> = (1..=250).map(|last| member("worker", 0, last)).collect();
    members.push(member("web", 1, 1));
    let served = serve(zone(7, &members));
    let dig = Dig(served.address);
    let asked = tokio::task::spawn_blocking(move || {
        let mut wrong = Vec::new();
        for (probe, options, expected) in PROBES {
            let replies = dig.ask(options);
            if replies != [*expected] {
                wrong.push(format!("{probe}: {replies:?} instead of {expected:?}"));
            }
        }
        let queries: Vec<_> = TYPES.split_whitespace().map(|name| format!("ZONE {name}")).collect();
        let replies = dig.ask(&format!("+noedns +noad +norec {}", queries.join(" ")));
        assert_eq!(replies.len(), queries.len());
        let known = queries.iter().zip(replies).filter(|(_, reply)| reply != NODATA);
        wrong.extend(known.map(|(query, reply)| format!("{query}: {reply}")));
        wrong
    });
    assert_eq!(asked.await.unwrap(), Vec::<String>::new());
}
