//! Which files make an identity, and what is said of those that do not.

use crate::common::{Authority, Files, REGION};
use gossip::{Identity, IdentityError};
use rcgen::{CertificateParams, SanType, date_time_ymd};

#[test]
fn a_host_is_named_by_its_certificate() {
    let authority = Authority::new();
    let identity =
        authority.issue(REGION, "host-a", |params| params.not_after = date_time_ymd(2099, 1, 1)).load();
    assert_eq!((identity.region.as_str(), identity.host.as_str()), (REGION, "host-a"));
    assert_eq!(identity.expires, 4_070_908_800);
}

#[test]
fn each_mistake_has_its_sentence() {
    let authority = Authority::new();
    let other = Authority::new();
    let issue = |change: fn(&mut CertificateParams)| authority.issue(REGION, "host-a", change);
    let good = || authority.issue(REGION, "host-b", |_| ());
    let missing = authority.issue(REGION, "x", |_| ()).ca.with_file_name("missing.pem");
    let uri = |params: &mut CertificateParams| {
        params.subject_alt_names.retain(|name| !matches!(name, SanType::URI(_)));
    };
    type Expected = fn(&IdentityError) -> bool;
    let cases: Vec<(Files, Expected, &str)> = vec![
        (
            Files { ca: missing.clone(), ..good() },
            |e| matches!(e, IdentityError::Unreadable { .. }),
            "missing.pem",
        ),
        (
            Files { cert: missing.clone(), ..good() },
            |e| matches!(e, IdentityError::Unreadable { .. }),
            "missing.pem",
        ),
        (Files { key: missing, ..good() }, |e| matches!(e, IdentityError::Unreadable { .. }), "missing.pem"),
        (
            Files { cert: good().key, ..good() },
            |e| matches!(e, IdentityError::Unreadable { .. }),
            "host-b.key",
        ),
        (
            Files { key: good().cert, ..good() },
            |e| matches!(e, IdentityError::Unreadable { .. }),
            "host-b.pem",
        ),
        (
            issue(|p| p.not_after = date_time_ymd(2020, 1, 1)),
            |e| matches!(e, IdentityError::Expired { .. }),
            "expired",
        ),
        (
            issue(|p| p.not_before = date_time_ymd(2999, 1, 1)),
            |e| matches!(e, IdentityError::NotYetValid { .. }),
            "clock",
        ),
        (
            Files { ca: other.issue(REGION, "y", |_| ()).ca, ..good() },
            |e| matches!(e, IdentityError::OtherCa { .. }),
            "not signed",
        ),
        (
            Files { key: authority.issue(REGION, "c", |_| ()).key, ..good() },
            |e| matches!(e, IdentityError::OtherKey { .. }),
            "c.key",
        ),
        (issue(uri), |e| matches!(e, IdentityError::Nameless { .. }), "warren://"),
        (
            issue(|p| drop(p.subject_alt_names.remove(0))),
            |e| matches!(e, IdentityError::Nameless { .. }),
            "warren.internal",
        ),
        (
            authority.issue("Bad Region", "host-a", |_| ()),
            |e| matches!(e, IdentityError::Nameless { .. }),
            "warren://",
        ),
    ];
    for (files, expected, words) in cases {
        let error = Identity::load(&files.ca, &files.cert, &files.key).expect_err(words);
        assert!(expected(&error), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
    }
}
