// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Answers that are as long as a guest makes them: `status` and `mappings`, some entries at a time. What the driver changes
//! in between is in the answer or is not; what it leaves alone is there once.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};

use crate::control::output::Parts;
use crate::device::Device;
use crate::device::status::{DeviceStatus, EndpointStatus};
use crate::spec::{DomainId, EndpointId, Iova, Pasid};

/// Entries that are looked up at a time: so long is the device's lock held.
const PAGE: usize = 1024;
/// So many bytes are a part.
const PART: usize = 32 << 10;

/// A list of which some entries are written.
struct Pages<K> {
    /// The first entry of the next page; `None` behind the last page.
    next: Option<K>,
    is_empty: bool,
}

impl<K: Copy> Pages<K> {
    fn from(first: K) -> Self {
        Self {
            next: Some(first),
            is_empty: true,
        }
    }

    /// Writes the next page. Whether more follow.
    fn write_next<T: Serialize>(
        &mut self,
        output: &mut Vec<u8>,
        look_up: impl FnOnce(K) -> Option<Vec<T>>,
        behind: impl FnOnce(&T) -> Option<K>,
    ) -> bool {
        let page = self.next.and_then(look_up).unwrap_or_default();
        for entry in &page {
            if !std::mem::take(&mut self.is_empty) {
                output.push(b',');
            }
            write_json(output, entry);
        }
        let full = page.last().filter(|_| page.len() == PAGE);
        self.next = full.and_then(behind);
        self.next.is_some()
    }
}

fn write_json(output: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    // Writing to memory cannot fail, and neither can what is made of strings and numbers.
    let _ = serde_json::to_writer(output, value);
}

/// The mappings of a domain. If the domain goes, the list ends.
pub struct Mappings {
    device: Arc<Device>,
    domain: DomainId,
    pages: Pages<Iova>,
    begun: bool,
}

impl Mappings {
    /// `None` if there is no such domain.
    pub fn new(device: &Arc<Device>, domain: DomainId) -> Option<Self> {
        device.mappings_from(domain, Iova(0), 0)?;
        Some(Self {
            device: Arc::clone(device),
            domain,
            pages: Pages::from(Iova(0)),
            begun: false,
        })
    }
}

impl Parts for Mappings {
    fn write_next(&mut self, output: &mut Vec<u8>) -> bool {
        if !std::mem::replace(&mut self.begun, true) {
            output.push(b'[');
        }
        let more = self.pages.write_next(
            output,
            |next| self.device.mappings_from(self.domain, next, PAGE),
            |mapping| mapping.last.checked_add(1).map(Iova),
        );
        if !more {
            output.push(b']');
        }
        more
    }
}

/// The state of the device.
pub struct Status {
    device: Arc<Device>,
    outline: DeviceStatus,
    step: Step,
}

/// What comes next.
enum Step {
    /// The endpoint of this index in the outline.
    Endpoint(usize),
    /// Its PASIDs.
    Pasids(usize, Pages<Pasid>),
    /// Domains.
    Domains(Pages<DomainId>),
    /// The rest.
    Rest,
}

impl Status {
    /// Of the device.
    pub fn new(device: &Arc<Device>) -> Self {
        Self {
            outline: device.outline(),
            device: Arc::clone(device),
            step: Step::Endpoint(0),
        }
    }

    /// Writes a step; the next one. `None`: that was the last.
    fn take_step(&self, output: &mut Vec<u8>, step: Step) -> Option<Step> {
        Some(match step {
            Step::Endpoint(index) => {
                let begin: &[u8] = if index == 0 { b"{\"endpoints\":[" } else { b"" };
                output.extend_from_slice(begin);
                let Some(endpoint) = self.outline.endpoints.get(index) else {
                    output.extend_from_slice(b"],\"domains\":[");
                    return Some(Step::Domains(Pages::from(DomainId(0))));
                };
                let comma: &[u8] = if index == 0 { b"" } else { b"," };
                output.extend_from_slice(comma);
                write_head(output, endpoint);
                output.extend_from_slice(b",\"pasids\":[");
                Step::Pasids(index, Pages::from(Pasid(0)))
            }
            Step::Pasids(index, mut pages) => {
                let endpoint = EndpointId(self.outline.endpoints.get(index)?.id);
                let more = pages.write_next(
                    output,
                    |next| self.device.pasids_from(endpoint, next, PAGE),
                    |last| last.pasid.checked_add(1).map(Pasid),
                );
                if more {
                    return Some(Step::Pasids(index, pages));
                }
                output.extend_from_slice(b"]}");
                Step::Endpoint(index + 1)
            }
            Step::Domains(mut pages) => {
                let more = pages.write_next(
                    output,
                    |next| Some(self.device.domains_from(next, PAGE)),
                    |last| last.id.checked_add(1).map(DomainId),
                );
                match more {
                    true => Step::Domains(pages),
                    false => Step::Rest,
                }
            }
            Step::Rest => {
                output.push(b']');
                for (key, value) in [
                    ("features", json!(self.outline.features)),
                    ("connected", json!(self.outline.connected)),
                    ("memory", json!(self.outline.memory)),
                ] {
                    output.extend_from_slice(format!(",\"{key}\":{value}").as_bytes());
                }
                output.push(b'}');
                return None;
            }
        })
    }
}

/// An endpoint without its PASIDs, as an object that is open.
fn write_head(output: &mut Vec<u8>, endpoint: &EndpointStatus) {
    let mut object = json!(endpoint);
    if let Value::Object(fields) = &mut object {
        fields.remove("pasids");
    }
    write_json(output, &object);
    output.pop();
}

impl Parts for Status {
    fn write_next(&mut self, output: &mut Vec<u8>) -> bool {
        let begin = output.len();
        while output.len() - begin < PART {
            let step = std::mem::replace(&mut self.step, Step::Rest);
            match self.take_step(output, step) {
                Some(next) => self.step = next,
                None => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceConfig;
    use crate::host::soft::{SoftHost, default_properties};

    fn device(endpoints: u32) -> Arc<Device> {
        let host = Arc::new(SoftHost::new().expect("host"));
        let ids: Vec<_> = (0..endpoints).map(EndpointId).collect();
        for &id in &ids {
            let properties = default_properties();
            host.add_endpoint(id, properties).expect("endpoint");
        }
        Arc::new(Device::new(DeviceConfig::default(), host, &ids).expect("device"))
    }

    /// Attaches a PASID, or the endpoint itself, to a domain.
    fn attach(device: &Device, domain: u32, endpoint: u32, pasid: Option<u32>) {
        let mut bytes = vec![1, 0, 0, 0];
        let flags = if pasid.is_some() { 1 << 2 } else { 0 };
        for field in [domain, endpoint, flags, pasid.unwrap_or(0)] {
            bytes.extend(u32::to_le_bytes(field));
        }
        let mut requests = device.requests();
        requests.execute(&bytes, bytes.len(), 4);
        requests.finish();
    }

    fn all_parts(mut parts: impl Parts) -> (Value, usize) {
        let (mut output, mut count) = (Vec::new(), 1);
        while parts.write_next(&mut output) {
            count += 1;
        }
        (serde_json::from_slice(&output).expect("JSON"), count)
    }

    #[test]
    fn a_status_in_parts_says_what_one_in_a_piece_says() {
        for endpoints in [0, 1, 3] {
            let device = device(endpoints);
            device.negotiate(u64::MAX);
            let (value, _) = all_parts(Status::new(&device));
            assert_eq!(value, json!(device.status()));
        }
        let device = device(3);
        device.negotiate(u64::MAX);
        for number in 0..3000 {
            attach(&device, number, number % 3, Some(number / 3));
        }
        attach(&device, 7, 1, None);
        let status = json!(device.status());
        assert_eq!(status["domains"].as_array().map(Vec::len), Some(3000));
        assert_eq!(status["endpoints"][2]["pasids"][999]["domain"], 2999);
        let (value, parts) = all_parts(Status::new(&device));
        assert_eq!(value, status);
        assert!(parts > 3, "{parts}");
    }
}
