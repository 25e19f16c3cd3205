// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `counters format=prometheus`: what Prometheus reads (text format 0.0.4). Counters, gauges of what there is now, and how
//! long page requests waited. Every sample has the labels of `--label`.

use std::fmt::{self, Write as _};
use std::str::FromStr;
use std::time::Instant;

use crate::device::Device;
use crate::device::status::{DeviceStatus, EndpointStatus};
use crate::notation::pci_name;

/// The beginning of all names.
const PREFIX: &str = "vhost_device_iommu";

/// Names of labels that samples have already.
const OURS: [&str; 4] = ["endpoint", "le", "state", "version"];

/// `--label NAME=VALUE`: on every sample, so that samples of several processes can be told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Letters, digits and `_`.
    pub name: String,
    /// Anything.
    pub value: String,
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text
            .split_once('=')
            .ok_or("expected NAME=VALUE, such as vm=mail")?;
        let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name || name.starts_with("__") {
            return Err(format!(
                "'{name}' is no name of a label: letters, digits and '_', and neither a digit nor '__' first"
            ));
        }
        if OURS.contains(&name) {
            return Err(format!("'{name}' is a label that samples have already"));
        }
        Ok(Self {
            name: name.to_owned(),
            value: value.to_owned(),
        })
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.value.replace('\\', r"\\");
        let value = value.replace('"', "\\\"").replace('\n', r"\n");
        write!(f, "{}=\"{value}\"", self.name)
    }
}

/// The text for Prometheus.
pub fn text(device: &Device, labels: &[Label], now: Instant) -> String {
    let mut text = Text {
        labels: labels.iter().map(Label::to_string).collect(),
        text: String::new(),
    };
    text.family(
        "build_info",
        "gauge",
        "The version of the program; always 1.",
    );
    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    text.sample("build_info", &[version], 1);
    for (name, help, value) in device.counters().each() {
        let name = format!("{name}_total");
        text.family(&name, "counter", help);
        text.sample(&name, &[], value);
    }
    let outline = device.outline();
    gauges(&mut text, device, &outline);
    endpoints(&mut text, device, &outline.endpoints, now);
    waiting_times(&mut text, device);
    text.text
}

fn gauges(text: &mut Text, device: &Device, outline: &DeviceStatus) {
    let sizes = device.sizes();
    let unreachable = outline.memory.iter().filter(|r| r.error.is_some());
    let bytes: u64 = outline.memory.iter().map(|region| region.length).sum();
    for (name, help, value) in [
        (
            "front_end_connected",
            "Whether a front-end is connected.",
            u64::from(outline.connected),
        ),
        ("domains", "Domains.", sizes.domains as u64),
        (
            "mappings",
            "Mappings, over all domains.",
            sizes.mappings as u64,
        ),
        (
            "pasid_attachments",
            "PASID attachments, over all endpoints.",
            sizes.pasids as u64,
        ),
        (
            "memory_regions",
            "Regions of guest memory.",
            outline.memory.len() as u64,
        ),
        (
            "memory_regions_unreachable",
            "Regions of guest memory that endpoints do not reach, or not all of them.",
            unreachable.count() as u64,
        ),
        ("memory_bytes", "Guest memory.", bytes),
    ] {
        text.family(name, "gauge", help);
        text.sample(name, &[], value);
    }
}

fn endpoints(text: &mut Text, device: &Device, endpoints: &[EndpointStatus], now: Instant) {
    let label = |id: u32| format!("endpoint=\"{}\"", pci_name(id));
    let name = "endpoint_state";
    text.family(name, "gauge", "Where each endpoint is; always 1.");
    for endpoint in endpoints {
        let state = format!("state=\"{}\"", endpoint.state);
        text.sample(name, &[label(endpoint.id), state], 1);
    }
    let waiting = device.waiting(now);
    let of = |id: u32| waiting.iter().find(|waiting| waiting.endpoint == id);
    let name = "page_request_groups_waiting";
    text.family(
        name,
        "gauge",
        "Page-request groups that wait for the guest.",
    );
    for endpoint in endpoints {
        let groups = of(endpoint.id).map_or(0, |waiting| waiting.groups);
        text.sample(name, &[label(endpoint.id)], groups);
    }
    let name = "page_request_oldest_seconds";
    let help = "How long the oldest page-request group has waited; 0 if none waits.";
    text.family(name, "gauge", help);
    for endpoint in endpoints {
        let age = of(endpoint.id).map_or(0.0, |waiting| waiting.oldest_seconds);
        text.sample(name, &[label(endpoint.id)], age);
    }
}

fn waiting_times(text: &mut Text, device: &Device) {
    let distribution = device.page_request_times().distribution();
    let name = "page_request_seconds";
    let help = "How long page-request groups waited, from the host to the driver's answer.";
    text.family(name, "histogram", help);
    let bucket = format!("{name}_bucket");
    for (bound, count) in distribution.up_to {
        text.sample(&bucket, &[format!("le=\"{bound}\"")], count);
    }
    text.sample(&bucket, &["le=\"+Inf\"".to_owned()], distribution.count);
    text.sample(&format!("{name}_sum"), &[], distribution.seconds);
    text.sample(&format!("{name}_count"), &[], distribution.count);
}

/// The text so far.
struct Text {
    /// Of every sample, as they are written.
    labels: Vec<String>,
    text: String,
}

// Writing to a string cannot fail.
impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(
            self.text,
            "# HELP {PREFIX}_{name} {help}\n# TYPE {PREFIX}_{name} {kind}\n"
        );
    }

    fn sample(&mut self, name: &str, own: &[String], value: impl fmt::Display) {
        let labels: Vec<_> = own.iter().chain(&self.labels).map(String::as_str).collect();
        let _ = match labels.is_empty() {
            true => writeln!(self.text, "{PREFIX}_{name} {value}"),
            false => writeln!(self.text, "{PREFIX}_{name}{{{}}} {value}", labels.join(",")),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_has_a_name_and_any_value() {
        let label: Label = "vm=a=\"b\\\n".parse().expect("a label");
        assert_eq!(label.to_string(), r#"vm="a=\"b\\\n""#);
        assert_eq!(
            "_x9=".parse::<Label>().expect("a label").to_string(),
            r#"_x9="""#
        );
        for text in [
            "",
            "vm",
            "=x",
            "9x=1",
            "a-b=1",
            "__name__=x",
            "le=1",
            "endpoint=x",
        ] {
            assert!(text.parse::<Label>().is_err(), "{text:?}");
        }
    }
}
