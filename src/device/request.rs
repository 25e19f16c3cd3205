// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From bytes to requests: what can be said about a request without knowing the device's state.

use std::mem::size_of;

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::host::mapping::{IovaRange, Mapping};
use crate::spec::{
    self, AttachFlags, DetachFlags, DomainId, EndpointId, Features, Gpa, GroupId, Head, MapFlags,
    PageResponseCode, PageResponseFlags, Pasid, RequestType, Status, TAIL_LEN,
};

/// The most bytes of a request's readable part that the device looks at: a longer request is malformed.
pub const MAX_READABLE: usize = size_of::<spec::Probe>();

/// A request whose fields are well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Attach(Attach),
    Detach(Detach),
    Map { domain: DomainId, mapping: Mapping },
    Unmap { domain: DomainId, range: IovaRange },
    Probe { endpoint: EndpointId },
    PageResponse(PageResponse),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attach {
    pub domain: DomainId,
    pub endpoint: EndpointId,
    pub pasid: Option<Pasid>,
    pub bypass: bool,
    pub page_request: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Detach {
    pub domain: DomainId,
    pub endpoint: EndpointId,
    pub pasid: Option<Pasid>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageResponse {
    pub endpoint: EndpointId,
    pub pasid: Option<Pasid>,
    pub group: GroupId,
    pub code: PageResponseCode,
}

/// Why there is no [`Request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The buffer is returned unwritten (R15, R16).
    Unwritten,
    /// The tail gets this status.
    Status(Status),
}

const INVAL: Refusal = Refusal::Status(Status::Inval);

/// Parses the device-readable part of a request. `features` are the negotiated ones: what they do not name does not
/// exist. `readable_len` and `writable_len` are the lengths of the two parts of the buffer.
pub(super) fn parse(
    readable: &[u8],
    readable_len: usize,
    writable_len: usize,
    features: Features,
) -> Result<Request, Refusal> {
    // R15, R16 and the choices beside them: without a head or room for a tail there is nothing to answer.
    if writable_len < TAIL_LEN || readable_len < size_of::<Head>() {
        return Err(Refusal::Unwritten);
    }
    let kind = readable
        .first()
        .and_then(|&kind| RequestType::from_wire(kind))
        .ok_or(Refusal::Unwritten)?;
    let body = Body {
        readable,
        readable_len,
    };
    match kind {
        RequestType::Attach => attach(body.read()?, features),
        RequestType::Detach => detach(body.read()?, features),
        // M47
        RequestType::Map if features.contains(Features::MAP_UNMAP) => map(body.read()?, features),
        RequestType::Unmap if features.contains(Features::MAP_UNMAP) => unmap(body.read()?),
        // P54: reserved is ignored. PROBE is served whenever it is offered, and it always is (P56).
        RequestType::Probe => Ok(Request::Probe {
            endpoint: EndpointId(body.read::<spec::Probe>()?.endpoint.get()),
        }),
        RequestType::PageResponse if features.contains(Features::PAGE_REQUEST) => {
            page_response(body.read()?, features)
        }
        RequestType::Map
        | RequestType::Unmap
        | RequestType::PageResponse
        | RequestType::AttachTable
        | RequestType::Invalidate => Err(Refusal::Unwritten),
    }
}

struct Body<'a> {
    readable: &'a [u8],
    readable_len: usize,
}

impl Body<'_> {
    /// The structure, when the readable part is exactly that long. R17: `head.reserved` is ignored.
    fn read<T: FromBytes + KnownLayout + Immutable + Unaligned>(&self) -> Result<T, Refusal> {
        if self.readable_len != size_of::<T>() {
            return Err(INVAL);
        }
        T::read_from_bytes(self.readable).map_err(|_| INVAL)
    }
}

fn attach(wire: spec::Attach, features: Features) -> Result<Request, Refusal> {
    // A27: a flag whose feature was not negotiated is an unknown flag.
    let mut known = AttachFlags::empty();
    known.set(
        AttachFlags::BYPASS,
        features.contains(Features::BYPASS_CONFIG),
    );
    known.set(
        AttachFlags::PAGE_REQUEST,
        features.contains(Features::PAGE_REQUEST),
    );
    known.set(AttachFlags::PASID, features.contains(Features::PASID));
    let flags = AttachFlags::from_bits(wire.flags.get())
        .filter(|&flags| known.contains(flags))
        .ok_or(INVAL)?;
    // Draft 1: a bypass domain has no missing translations to request.
    if flags.contains(AttachFlags::BYPASS | AttachFlags::PAGE_REQUEST) {
        return Err(INVAL);
    }
    Ok(Request::Attach(Attach {
        domain: DomainId(wire.domain.get()),
        endpoint: EndpointId(wire.endpoint.get()),
        pasid: pasid(flags.contains(AttachFlags::PASID), wire.pasid.get())?,
        bypass: flags.contains(AttachFlags::BYPASS),
        page_request: flags.contains(AttachFlags::PAGE_REQUEST),
    }))
}

/// A26 for ATTACH, draft 1 for PAGE_RESPONSE: without the flag the field is reserved and must be zero.
fn pasid(flag: bool, field: u32) -> Result<Option<Pasid>, Refusal> {
    match (flag, field) {
        (true, pasid) => Ok(Some(Pasid(pasid))),
        (false, 0) => Ok(None),
        (false, _) => Err(INVAL),
    }
}

fn detach(wire: spec::Detach, features: Features) -> Result<Request, Refusal> {
    let pasid = if features.contains(Features::PASID) {
        let flags = DetachFlags::from_bits(wire.flags.get()).ok_or(INVAL)?;
        flags
            .contains(DetachFlags::PASID)
            .then(|| Pasid(wire.pasid.get()))
    } else {
        // D35: reserved, and ignored.
        None
    };
    Ok(Request::Detach(Detach {
        domain: DomainId(wire.domain.get()),
        endpoint: EndpointId(wire.endpoint.get()),
        pasid,
    }))
}

fn map(wire: spec::Map, features: Features) -> Result<Request, Refusal> {
    // M42; M46: MMIO exists only when it was negotiated.
    let flags = MapFlags::from_bits(wire.flags.get())
        .filter(|flags| !flags.contains(MapFlags::MMIO) || features.contains(Features::MMIO))
        .ok_or(INVAL)?;
    let (first, last) = (wire.virt_start.get(), wire.virt_end.get());
    // M46
    let range = IovaRange::new(first, last)
        .filter(|_| first != last)
        .ok_or(INVAL)?;
    Ok(Request::Map {
        domain: DomainId(wire.domain.get()),
        mapping: Mapping {
            range,
            gpa: Gpa(wire.phys_start.get()),
            flags,
        },
    })
}

fn unmap(wire: spec::Unmap) -> Result<Request, Refusal> {
    // U48
    if wire.reserved.get() != 0 {
        return Err(INVAL);
    }
    Ok(Request::Unmap {
        domain: DomainId(wire.domain.get()),
        range: IovaRange::new(wire.virt_start.get(), wire.virt_end.get()).ok_or(INVAL)?,
    })
}

fn page_response(wire: spec::PageResponse, features: Features) -> Result<Request, Refusal> {
    let flags = PageResponseFlags::from_bits(wire.flags.get())
        .filter(|flags| flags.is_empty() || features.contains(Features::PASID))
        .ok_or(INVAL)?;
    if wire.reserved != [0; 8] {
        return Err(INVAL);
    }
    Ok(Request::PageResponse(PageResponse {
        endpoint: EndpointId(wire.endpoint.get()),
        pasid: pasid(flags.contains(PageResponseFlags::PASID), wire.pasid.get())?,
        group: GroupId(wire.group_id.get()),
        code: PageResponseCode::from_wire(wire.code.get()).ok_or(INVAL)?,
    }))
}
