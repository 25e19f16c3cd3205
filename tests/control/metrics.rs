// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The text for Prometheus: well-formed by its format's rules (text format 0.0.4), and true.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::daemon::Daemon;

/// A sample: its name and labels, and its value.
type Samples = BTreeMap<(String, Vec<(String, String)>), f64>;

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Labels as they are written between braces.
fn labels(text: &str) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, more) = rest.split_once("=\"").expect("a label");
        assert!(is_name(name), "{name:?}");
        let mut value = String::new();
        let mut characters = more.char_indices();
        let end = loop {
            match characters.next().expect("the end of a value") {
                (end, '"') => break end,
                (_, '\\') => match characters.next().expect("an escape").1 {
                    'n' => value.push('\n'),
                    other @ ('\\' | '"') => value.push(other),
                    other => panic!("escape of {other:?}"),
                },
                (_, other) => value.push(other),
            }
        };
        labels.push((name.to_owned(), value));
        rest = &more[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    let names: BTreeSet<_> = labels.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), labels.len(), "a name twice: {text}");
    labels
}

/// The samples of a text. Panics where it breaks a rule of the format.
fn parse(text: &str) -> Samples {
    assert!(text.ends_with('\n'));
    let mut samples = Samples::new();
    let mut kinds: BTreeMap<String, String> = BTreeMap::new();
    let mut help = String::new();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, words) = rest.split_once(' ').expect("help");
            assert!(!words.is_empty() && is_name(name), "{line}");
            help = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert_eq!(name, help, "its help comes first");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            let known = kinds.insert(name.to_owned(), kind.to_owned());
            assert!(known.is_none(), "a family in two places: {line}");
            family = name.to_owned();
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let (name, own) = match series.split_once('{') {
                Some((name, own)) => (name, labels(own.strip_suffix('}').expect("a brace"))),
                None => (series, Vec::new()),
            };
            let suffix = name.strip_prefix(&family).expect("a sample of the family");
            let suffixes: &[&str] = match kinds[&family].as_str() {
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            assert!(suffixes.contains(&suffix), "{line}");
            let value: f64 = value.parse().expect("a number");
            let again = samples.insert((name.to_owned(), own), value);
            assert!(again.is_none(), "twice: {line}");
        }
    }
    samples
}

fn text(daemon: &Daemon) -> String {
    let answer = daemon
        .connect()
        .call("counters", json!({"format": "prometheus"}));
    let text = answer["return"]["text"].as_str();
    text.expect("text").to_owned()
}

/// The value of the one sample with this name and, among others, these labels.
fn value(samples: &Samples, name: &str, with: &[(&str, &str)]) -> f64 {
    let found: Vec<_> = samples
        .iter()
        .filter(|((known, labels), _)| {
            let has = |(name, value): &(&str, &str)| {
                labels.contains(&((*name).to_owned(), (*value).to_owned()))
            };
            known == &format!("vhost_device_iommu_{name}") && with.iter().all(has)
        })
        .collect();
    assert_eq!(found.len(), 1, "{name} {with:?}: {found:?}");
    *found[0].1
}

#[test]
fn gauges_say_what_there_is_now() {
    let daemon = Daemon::new();
    let endpoint = ("endpoint", "0000:00:05.0");
    let samples = parse(&text(&daemon));
    let version = ("version", env!("CARGO_PKG_VERSION"));
    assert_eq!(value(&samples, "build_info", &[version]), 1.0);
    assert_eq!(value(&samples, "mappings", &[]), 0.0);
    let state = ("state", "bypass");
    assert_eq!(value(&samples, "endpoint_state", &[endpoint, state]), 1.0);
    daemon.attach(1);
    daemon.map(1, 0x1000, 0x2fff, 0x5000, 3);
    daemon.map(1, 0x4000, 0x4fff, 0x8000, 3);
    let samples = parse(&text(&daemon));
    assert_eq!(value(&samples, "mappings", &[]), 2.0);
    assert_eq!(value(&samples, "domains", &[]), 1.0);
    assert_eq!(value(&samples, "attach_total", &[]), 1.0);
    let state = ("state", "attached");
    assert_eq!(value(&samples, "endpoint_state", &[endpoint, state]), 1.0);
    assert!(value(&samples, "memory_regions", &[]) >= 1.0);
    assert_eq!(value(&samples, "memory_regions_unreachable", &[]), 0.0);
}

#[test]
fn every_sample_has_the_labels_of_the_process() {
    let labels = ["vm=mail", "rack=a\"b\\c\nd"].map(|label| label.parse().expect("a label"));
    let daemon = Daemon::with_labels(&labels);
    let samples = parse(&text(&daemon));
    assert!(samples.len() > 40, "{}", samples.len());
    for series in samples.keys() {
        for (name, value) in [("vm", "mail"), ("rack", "a\"b\\c\nd")] {
            let label = (name.to_owned(), value.to_owned());
            assert!(series.1.contains(&label), "{series:?}");
        }
    }
}

#[test]
fn page_requests_are_seen_while_they_wait_and_timed_when_they_are_answered() {
    let daemon = Daemon::new();
    let endpoint = ("endpoint", "0000:00:05.0");
    let inf = ("le", "+Inf");
    daemon.attach(1);
    let samples = parse(&text(&daemon));
    let waiting = "page_request_groups_waiting";
    assert_eq!(value(&samples, waiting, &[endpoint]), 0.0);
    assert_eq!(
        daemon.connect().call("waiting", json!({}))["return"],
        json!([])
    );
    let mut client = daemon.connect();
    client.send(
        "{\"execute\":\"page-request\",\"arguments\":{\"endpoint\":40,\"pages\":[{\"iova\":4096,\"access\":\"r\"}]}}\n",
    );
    let groups = daemon.groups(1);
    let samples = parse(&text(&daemon));
    assert_eq!(value(&samples, waiting, &[endpoint]), 1.0);
    assert!(value(&samples, "page_request_oldest_seconds", &[endpoint]) > 0.0);
    assert_eq!(value(&samples, "page_request_seconds_count", &[]), 0.0);
    let listed = daemon.connect().call("waiting", json!({}));
    assert_eq!(listed["return"][0]["endpoint"], 40);
    assert_eq!(listed["return"][0]["groups"], 1);
    daemon.respond(groups[0], 0);
    assert_eq!(client.receive()["return"]["response"], "success");
    let samples = parse(&text(&daemon));
    assert_eq!(value(&samples, waiting, &[endpoint]), 0.0);
    assert_eq!(value(&samples, "page_request_seconds_count", &[]), 1.0);
    assert_eq!(value(&samples, "page_request_seconds_bucket", &[inf]), 1.0);
    assert!(value(&samples, "page_request_seconds_sum", &[]) > 0.0);
}

#[test]
fn buckets_of_the_histogram_ascend_to_all() {
    let samples = parse(&text(&Daemon::new()));
    let mut bounds: Vec<f64> = samples
        .keys()
        .filter(|(name, _)| name.ends_with("_seconds_bucket"))
        .map(|(_, labels)| labels[0].1.replace("+Inf", "inf"))
        .map(|bound| bound.parse().expect("a bound"))
        .collect();
    bounds.sort_by(f64::total_cmp);
    assert_eq!(bounds.last(), Some(&f64::INFINITY));
    assert!(bounds.len() > 10 && bounds[0] > 0.0);
}
