use std::net::Ipv4Addr;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::RootCertStore;
use rustls::pki_types::PrivateKeyDer;

use super::*;

/// A CA, and the trust in it.
fn authority() -> (Issuer<'static, KeyPair>, Arc<RootCertStore>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let mut roots = RootCertStore::empty();
    roots.add(params.self_signed(&key).unwrap().der().clone()).unwrap();
    (Issuer::new(params, key), Arc::new(roots))
}

fn identity(issuer: &Issuer<'static, KeyPair>, roots: &Arc<RootCertStore>, host: &str) -> Identity {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![SERVER_NAME.into()]).unwrap();
    params.subject_alt_names.push(SanType::URI(format!("warren://r/{host}").try_into().unwrap()));
    let certificate = params.signed_by(&key, issuer).unwrap();
    Identity {
        host: host.parse().unwrap(),
        region: "r".parse().unwrap(),
        expires: 0,
        roots: roots.clone(),
        chain: vec![certificate.der().clone()],
        key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    }
}

async fn bind(identity: &Identity) -> Quic {
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Quic::bind(anywhere, anywhere, identity).await.unwrap()
}

/// One that trusts the region's CA and is not of it learns why it is refused, whoever calls.
#[tokio::test]
async fn the_refused_one_learns_the_reason() {
    let (issuer, roots) = authority();
    let (stranger, _) = authority();
    let host = bind(&identity(&issuer, &roots, "a")).await;
    let refused = bind(&identity(&stranger, &roots, "b")).await;
    let ask = async |from: &Quic, to: &Quic| {
        time::timeout(Duration::from_secs(10), from.ask(to.advertise(), vec![1])).await.unwrap().unwrap_err()
    };
    for (from, to) in [(&refused, &host), (&host, &refused)] {
        let error = ask(from, to).await;
        let AskError::Refused(Refusal::Tls(text)) = &error else { panic!("{error}") };
        assert!(text.contains("invalid peer certificate"), "{text}");
    }
    let counted = |wire: &Quic| wire.counters().get("gossip_rejected_total", &[("reason", "tls")]);
    assert!(counted(&host) >= 1 && counted(&refused) >= 1);
}

/// A refusal repeated is counted each time and told once.
#[tokio::test(start_paused = true)]
async fn the_log_is_told_once_a_minute() {
    let (issuer, roots) = authority();
    let wire = bind(&identity(&issuer, &roots, "a")).await;
    let ended = Ended::ByUs(Refusal::Region("other".into()));
    let address = SocketAddr::from(([192, 0, 2, 1], 1));
    let told = |wire: &Quic| lock(&wire.shared.complaints).get(&(address, "region")).copied();
    wire.shared.complain(address, &ended);
    let first = told(&wire);
    time::advance(COMPLAINT_PAUSE / 2).await;
    wire.shared.complain(address, &ended);
    assert_eq!(told(&wire), first);
    time::advance(COMPLAINT_PAUSE).await;
    wire.shared.complain(address, &ended);
    assert!(told(&wire) > first);
    assert_eq!(wire.counters().get("gossip_rejected_total", &[("reason", "region")]), 3);
}
