//! hickory-server with the names in a map: its own zone in memory walks through all of them before it says that
//! one is missing.

use std::collections::BTreeMap;
use std::io;

use hickory_server::net::runtime::Time;
use hickory_server::proto::op::{Header, HeaderCounts, Metadata, ResponseCode};
use hickory_server::proto::rr::rdata::{A, SOA};
use hickory_server::proto::rr::{LowerName, Name, RData, Record};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;

use super::names::{ORIGIN, SUFFIX, zone};

/// Answers A questions.
pub struct Names {
    records: BTreeMap<LowerName, Vec<Record>>,
    soa: Record,
}

impl Names {
    /// The bench's zone.
    pub fn new() -> io::Result<Names> {
        let name = |text: &str| Name::from_ascii(format!("{text}.")).map_err(io::Error::other);
        let (server, mailbox) = (name(&format!("ns.{SUFFIX}"))?, name(&format!("hostmaster.{SUFFIX}"))?);
        let soa = RData::SOA(SOA::new(server, mailbox, 1, 3600, 600, 86_400, 5));
        let mut records = BTreeMap::new();
        for named in zone().names() {
            let owner = name(&named.name)?;
            let record = |address| Record::from_rdata(owner.clone(), 30, RData::A(A(address)));
            records.insert(LowerName::from(&owner), named.addresses.into_iter().map(record).collect());
        }
        Ok(Names { records, soa: Record::from_rdata(name(ORIGIN)?, 5, soa) })
    }
}

#[async_trait::async_trait]
impl RequestHandler for Names {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response_handle: R,
    ) -> ResponseInfo {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.authoritative = true;
        let asked = request.request_info().ok().and_then(|info| self.records.get(info.query.name()));
        let (records, soa) = match asked {
            Some(records) => (records.as_slice(), None),
            None => {
                metadata.response_code = ResponseCode::NXDomain;
                (&[][..], Some(&self.soa))
            }
        };
        let mut edns = request.edns.clone();
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &mut edns {
            edns.set_max_payload(1232);
            builder.edns(edns);
        }
        let response = builder.build(metadata, records, [], soa, []);
        let failed = |_| ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() });
        response_handle.send_response(response).await.unwrap_or_else(failed)
    }
}
