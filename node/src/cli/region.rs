//! `warren region`: the certificate authority of a region, and its hosts' certificates.

use std::fs::File;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use gossip::id::{HostId, Region};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde::Serialize;

use super::Failure;
use super::output::Output;

/// How long a region's CA lives.
const CA_DAYS: u32 = 10 * 365;
/// How long a host's certificate lives when not told.
const HOST_DAYS: u32 = 365;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a region's certificate authority: DIR/ca.pem and DIR/ca.key
    Init(Init),
    /// Issue a host's certificate: DIR/HOST.pem and DIR/HOST.key
    Issue(Issue),
}

#[derive(Debug, Args)]
pub struct Init {
    /// The region's name, such as osc-fr1
    #[arg(long)]
    region: Region,
    /// Where to write; keep ca.key there off the hosts
    #[arg(long)]
    dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct Issue {
    /// Where ca.pem and ca.key are
    #[arg(long)]
    dir: PathBuf,
    /// The host's name
    #[arg(long)]
    host: HostId,
    /// An underlay address of the host; may be given several times
    #[arg(long)]
    address: Vec<IpAddr>,
    /// Days the certificate is valid
    #[arg(long, default_value_t = HOST_DAYS, value_parser = clap::value_parser!(u32).range(0..=3650))]
    days: u32,
    /// Replace a certificate issued before
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct Written {
    region: Region,
    certificate: PathBuf,
    key: PathBuf,
    expires: u64,
}

pub fn run(verb: Verb, out: &Output) -> Result<ExitCode, Failure> {
    let written = match verb {
        Verb::Init(args) => init(&args)?,
        Verb::Issue(args) => issue(&args)?,
    };
    out.one(&written, &written.certificate.display().to_string(), || {
        format!("wrote {} and {}", written.certificate.display(), written.key.display())
    });
    Ok(ExitCode::SUCCESS)
}

fn init(args: &Init) -> Result<Written, Failure> {
    std::fs::create_dir_all(&args.dir).map_err(|e| Failure::new(format!("{}: {e}", args.dir.display())))?;
    let key = KeyPair::generate().map_err(failed)?;
    let (mut params, expires) = valid(CA_DAYS);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::OrganizationName, "warren");
    params.distinguished_name.push(DnType::CommonName, args.region.as_str());
    let certificate = params.self_signed(&key).map_err(failed)?;
    let paths = [args.dir.join("ca.pem"), args.dir.join("ca.key")];
    // A second CA would make every host of the region a stranger.
    write_new(&paths[1], &key.serialize_pem(), 0o600, false)?;
    write_new(&paths[0], &certificate.pem(), 0o644, false)?;
    let [certificate, key] = paths;
    Ok(Written { region: args.region.clone(), certificate, key, expires })
}

fn issue(args: &Issue) -> Result<Written, Failure> {
    let ca_pem = read(&args.dir.join("ca.pem"))?;
    let ca_key = KeyPair::from_pem(&read(&args.dir.join("ca.key"))?).map_err(failed)?;
    let region = region_of(&ca_pem)?;
    let issuer = Issuer::from_ca_cert_pem(&ca_pem, ca_key).map_err(failed)?;
    let key = KeyPair::generate().map_err(failed)?;
    let (mut params, expires) = valid(args.days);
    params.distinguished_name.push(DnType::CommonName, args.host.as_str());
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let name = |text: String| Ia5String::try_from(text).map_err(failed);
    params.subject_alt_names = vec![
        SanType::URI(name(format!("warren://{region}/{}", args.host))?),
        SanType::DnsName(name(gossip::identity::SERVER_NAME.to_owned())?),
    ];
    params.subject_alt_names.extend(args.address.iter().copied().map(SanType::IpAddress));
    let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
    let paths = [args.dir.join(format!("{}.pem", args.host)), args.dir.join(format!("{}.key", args.host))];
    write_new(&paths[1], &key.serialize_pem(), 0o600, args.force)?;
    write_new(&paths[0], &certificate.pem(), 0o644, args.force)?;
    let [certificate, key] = paths;
    Ok(Written { region, certificate, key, expires })
}

/// Parameters valid from an hour ago (clocks differ) for some days, and the end in unix seconds.
fn valid(days: u32) -> (CertificateParams, u64) {
    let now = SystemTime::now();
    let end = now + Duration::from_secs(u64::from(days) * 86_400);
    let mut params = CertificateParams::default();
    params.not_before = (now - Duration::from_secs(3600)).into();
    params.not_after = end.into();
    (params, end.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs()))
}

/// The region is the CA's common name.
fn region_of(ca_pem: &str) -> Result<Region, Failure> {
    let pem = x509_parser::pem::parse_x509_pem(ca_pem.as_bytes()).map_err(failed)?.1;
    let certificate = pem.parse_x509().map_err(failed)?;
    let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    let name = name.ok_or_else(|| Failure::new("ca.pem is not a CA made by `warren region init`"))?;
    name.parse().map_err(|e| Failure::new(format!("ca.pem: {e}")))
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|e| {
        Failure::new(format!("cannot read {}: {e}", path.display()))
            .hint("make the region first: warren region init --region NAME --dir DIR")
    })
}

fn write_new(path: &Path, text: &str, mode: u32, replace: bool) -> Result<(), Failure> {
    let mut options = File::options();
    options.write(true).mode(mode);
    if replace {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let written = options.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Failure::new(format!("{} exists; it is not replaced", path.display())).code(6)
        }
        _ => Failure::new(format!("cannot write {}: {e}", path.display())),
    })
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(format!("certificate: {error}"))
}
