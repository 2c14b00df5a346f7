//! The nft table `inet warren` in a container, by netlink.
//!
//! One chain for each member keeps its private address private: Linux answers on any interface for any
//! of its addresses (the weak host model), so a neighbour on the container's other network could reach
//! it, or claim to be a member. One shared chain gives port 53 of the DNS listener's address its real
//! port. Everything acts on the calling thread's network namespace; nothing is kept between calls.

mod rule;
mod transaction;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

use ipnet::{Ipv4Net, Ipv6Net};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, InetHookNumber, ListAttribute, NfTablesMessage, RuleAttribute, RuleMessage,
    TableAttribute, TableFlags, TableMessage,
};

use self::rule::Rule;
use self::transaction::{End, Transactions};

const TABLE: &str = "warren";
const READ: &str = "read the rules";
const MEMBER: &str = "member-";
const DNS: &str = "dns";
const MEMBER_HOOK: InetHookNumber = InetHookNumber::PreRouting;
const DNS_HOOK: InetHookNumber = InetHookNumber::LocalOut;

/// What protects one member's private address, and where its container's DNS listener is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The member's WireGuard interface, at most 15 bytes.
    pub ifname: String,
    /// Its private address: packets for it enter by `ifname` or `lo` only.
    pub address: Ipv4Addr,
    /// Its network: packets from it enter by `ifname` or `lo` only.
    pub subnet: Ipv4Net,
    /// As `address`, in IPv6.
    pub address6: Option<Ipv6Addr>,
    /// As `subnet`, in IPv6.
    pub ula: Option<Ipv6Net>,
    /// Where the DNS listener is bound: port 53 of its address is rewritten to its port.
    pub listener: SocketAddrV4,
}

/// Why the table could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The kernel has no nf_tables, or not all the expressions the rules need.
    #[error(
        "this kernel has no usable nf_tables ({0}): load the modules nf_tables and nf_tables_inet, or set `unguarded`"
    )]
    Unsupported(io::Error),
    /// A member id or an interface name that the kernel cannot hold.
    #[error("{0:?} is too long or empty: a member id has 1 to 100 bytes, an interface name 1 to 15")]
    Name(String),
    /// The kernel refused.
    #[error("nf_tables refused to {action}: {source}; is CAP_NET_ADMIN held in this network namespace?")]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Makes `member`'s chain and the shared DNS rewrite exactly as `rules` say, in one transaction, in
/// the calling thread's network namespace. Other members' chains stay.
pub fn install(member: &str, rules: &Rules) -> Result<(), NftError> {
    let chain = chain_of(member)?;
    if rules.ifname.is_empty() || rules.ifname.len() > 15 {
        return Err(NftError::Name(rules.ifname.clone()));
    }
    let mut transactions = open()?;
    let table = Table::read(&mut transactions).map_err(|error| refused(READ, error))?;
    transactions
        .batch(installation(&chain, rules, &table), End::Commit)
        .map_err(|error| refused("install the rules", error))
}

/// Removes `member`'s chain; the last one takes the table along. An absent chain is no error.
pub fn remove(member: &str) -> Result<(), NftError> {
    let chain = chain_of(member)?;
    let removed = open().and_then(|mut transactions| {
        let table = Table::read(&mut transactions).map_err(|error| refused(READ, error))?;
        match removal(&chain, &table) {
            requests if requests.is_empty() => Ok(()),
            requests => {
                transactions.batch(requests, End::Commit).map_err(|error| refused("remove the rules", error))
            }
        }
    });
    match removed {
        // Where there are no rules at all, ours are absent.
        Err(NftError::Unsupported(_)) => Ok(()),
        removed => removed,
    }
}

/// Removes the table with everybody's rules. An absent one is no error.
pub fn clear() -> Result<(), NftError> {
    match open().and_then(|mut transactions| {
        let table = Table::read(&mut transactions).map_err(|error| refused(READ, error))?;
        if !table.exists {
            return Ok(());
        }
        transactions
            .batch(vec![delete_table()], End::Commit)
            .map_err(|error| refused("remove the table", error))
    }) {
        Err(NftError::Unsupported(_)) => Ok(()),
        cleared => cleared,
    }
}

/// Whether the table stands in the calling thread's network namespace, whole or not.
pub fn stands() -> bool {
    open().is_ok_and(|mut transactions| Table::read(&mut transactions).is_ok_and(|table| table.exists))
}

/// The members whose rules stand whole in the calling thread's network namespace. A chain that was
/// flushed or edited, by whomever, is not among them; nor is any while the shared DNS chain is not
/// whole or the table sleeps.
pub fn observe() -> Result<BTreeMap<String, Rules>, NftError> {
    let table = Table::read(&mut open()?).map_err(|error| refused(READ, error))?;
    Ok(table.whole_members())
}

/// Whether this kernel can hold the rules: they are tried in a transaction that is never committed, in
/// the calling thread's network namespace.
pub fn supported() -> bool {
    let sample = Rules {
        ifname: "wg0".to_owned(),
        address: Ipv4Addr::LOCALHOST,
        subnet: Ipv4Net::from(Ipv4Addr::LOCALHOST),
        address6: Some(Ipv6Addr::LOCALHOST),
        ula: Some(Ipv6Net::from(Ipv6Addr::LOCALHOST)),
        listener: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1),
    };
    let tried = open().and_then(|mut transactions| {
        transactions
            .batch(installation("probe", &sample, &Table::default()), End::Rehearse)
            .map_err(|error| refused("try the rules", error))
    });
    !matches!(tried, Err(NftError::Unsupported(_)))
}

/// The table as it is, by chain name.
#[derive(Default)]
struct Table {
    exists: bool,
    dormant: bool,
    chains: BTreeMap<String, Chain>,
}

#[derive(Default)]
struct Chain {
    attributes: Vec<ChainAttribute>,
    rules: Vec<Rule>,
}

impl Table {
    fn read(transactions: &mut Transactions) -> io::Result<Table> {
        let mut table = Table::default();
        for found in transactions.dump(&NfTablesMessage::GetTable(TableMessage { attributes: vec![] }))? {
            table.take_table(found);
        }
        if table.exists {
            for found in transactions.dump(&NfTablesMessage::GetChain(ChainMessage { attributes: vec![] }))? {
                table.take_chain(found);
            }
            let ours = vec![RuleAttribute::Table(TABLE.to_owned())];
            for found in transactions.dump(&NfTablesMessage::GetRule(RuleMessage { attributes: ours }))? {
                table.take_rule(found);
            }
        }
        Ok(table)
    }

    fn take_table(&mut self, found: NfTablesMessage) {
        if let NfTablesMessage::NewTable(TableMessage { attributes }) = found
            && attributes.contains(&TableAttribute::Name(TABLE.to_owned()))
        {
            self.exists = true;
            self.dormant = attributes.iter().any(|attribute| {
                matches!(attribute, TableAttribute::Flags(flags) if flags.contains(TableFlags::Dormant))
            });
        }
    }

    fn take_chain(&mut self, found: NfTablesMessage) {
        if let NfTablesMessage::NewChain(ChainMessage { attributes }) = found
            && attributes.contains(&ChainAttribute::Table(TABLE.to_owned()))
            && let Some(name) = attributes.iter().find_map(|attribute| match attribute {
                ChainAttribute::Name(name) => Some(name.clone()),
                _ => None,
            })
        {
            self.chains.insert(name, Chain { attributes, rules: Vec::new() });
        }
    }

    fn take_rule(&mut self, found: NfTablesMessage) {
        let NfTablesMessage::NewRule(RuleMessage { attributes }) = found else { return };
        if !attributes.contains(&RuleAttribute::Table(TABLE.to_owned())) {
            return;
        }
        let mut rule = Rule::new();
        let mut chain = None;
        for attribute in attributes {
            match attribute {
                RuleAttribute::Chain(name) => chain = self.chains.get_mut(&name),
                RuleAttribute::Expressions(list) => {
                    rule = list
                        .into_iter()
                        .map(|element| match element {
                            ListAttribute::Element(expression) => expression,
                            _ => Vec::new(),
                        })
                        .collect();
                }
                _ => (),
            }
        }
        if let Some(chain) = chain {
            chain.rules.push(rule);
        }
    }

    fn whole_members(&self) -> BTreeMap<String, Rules> {
        let dns = self.chains.get(DNS).filter(|dns| rule::is_base_chain(&dns.attributes, DNS_HOOK));
        let (Some(dns), false) = (dns, self.dormant) else { return BTreeMap::new() };
        let members = self.chains.iter().filter_map(|(name, chain)| {
            let member = name.strip_prefix(MEMBER)?;
            let rules = rule::read(&chain.rules, &dns.rules)?;
            rule::is_base_chain(&chain.attributes, MEMBER_HOOK).then(|| (member.to_owned(), rules))
        });
        members.collect()
    }
}

/// The batch that leads from `table` to `rules`, whatever somebody did to the two chains.
fn installation(chain: &str, rules: &Rules, table: &Table) -> Vec<NfTablesMessage> {
    let name = TableAttribute::Name(TABLE.to_owned());
    let awake = TableAttribute::Flags(TableFlags::empty());
    let mut requests = vec![NfTablesMessage::NewTable(TableMessage { attributes: vec![name, awake] })];
    requests.extend(replacement(chain, MEMBER_HOOK, rule::guard(rules), table));
    requests.extend(replacement(DNS, DNS_HOOK, rule::dns(rules.listener), table));
    requests
}

fn replacement(chain: &str, hook: InetHookNumber, rules: Vec<Rule>, table: &Table) -> Vec<NfTablesMessage> {
    let mut requests = Vec::new();
    match table.chains.get(chain) {
        Some(found) if rule::is_base_chain(&found.attributes, hook) => requests.push(flush(chain)),
        Some(_) => requests.extend([flush(chain), delete(chain), create(chain, hook)]),
        None => requests.push(create(chain, hook)),
    }
    requests.extend(rules.into_iter().map(|rule| append(chain, rule)));
    requests
}

/// The batch that removes `chain`, or the whole table when no other member's chain is in it.
fn removal(chain: &str, table: &Table) -> Vec<NfTablesMessage> {
    let others = table.chains.keys().any(|name| name.starts_with(MEMBER) && name != chain);
    if !table.exists {
        Vec::new()
    } else if !others {
        vec![delete_table()]
    } else if table.chains.contains_key(chain) {
        vec![flush(chain), delete(chain)]
    } else {
        Vec::new()
    }
}

fn delete_table() -> NfTablesMessage {
    NfTablesMessage::DeleteTable(TableMessage { attributes: vec![TableAttribute::Name(TABLE.to_owned())] })
}

fn create(chain: &str, hook: InetHookNumber) -> NfTablesMessage {
    let mut attributes =
        vec![ChainAttribute::Table(TABLE.to_owned()), ChainAttribute::Name(chain.to_owned())];
    attributes.extend(rule::base_chain(hook));
    NfTablesMessage::NewChain(ChainMessage { attributes })
}

fn delete(chain: &str) -> NfTablesMessage {
    let attributes = vec![ChainAttribute::Table(TABLE.to_owned()), ChainAttribute::Name(chain.to_owned())];
    NfTablesMessage::DeleteChain(ChainMessage { attributes })
}

fn flush(chain: &str) -> NfTablesMessage {
    let attributes = vec![RuleAttribute::Table(TABLE.to_owned()), RuleAttribute::Chain(chain.to_owned())];
    NfTablesMessage::DeleteRule(RuleMessage { attributes })
}

fn append(chain: &str, rule: Rule) -> NfTablesMessage {
    let attributes = vec![
        RuleAttribute::Table(TABLE.to_owned()),
        RuleAttribute::Chain(chain.to_owned()),
        RuleAttribute::Expressions(rule.into_iter().map(ListAttribute::Element).collect()),
    ];
    NfTablesMessage::NewRule(RuleMessage { attributes })
}

fn chain_of(member: &str) -> Result<String, NftError> {
    if member.is_empty() || member.len() > 100 || member.bytes().any(|byte| byte == 0) {
        return Err(NftError::Name(member.to_owned()));
    }
    Ok(format!("{MEMBER}{member}"))
}

fn open() -> Result<Transactions, NftError> {
    Transactions::open().map_err(|error| refused("open a netlink socket", error))
}

/// The kernel's answers that mean a missing module: of nfnetlink, nf_tables, the family or an expression.
fn refused(action: &'static str, source: io::Error) -> NftError {
    match source.raw_os_error() {
        Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::ENOENT) => {
            NftError::Unsupported(source)
        }
        // Outside a batch nfnetlink says so when nf_tables is missing.
        Some(libc::EINVAL) if action == READ => NftError::Unsupported(source),
        _ => NftError::Kernel { action, source },
    }
}
