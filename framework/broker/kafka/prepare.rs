//! Creates or verifies a subscription's topics, and looks at what could lose messages before any is consumed.
//!
//! Looks at everything before it gives up, so that all findings are reported at once. Never deletes and never
//! changes what is there.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::RDKafkaErrorCode;

use super::connection::{ANSWER_MAX, Cluster, Quiet};
use super::fault;
use super::group::Kind;
use super::inspect::{
    Durability, Facts, Findings, RECORD_MAX, look_at_ours, look_at_source, under,
};
use super::limits::Limit;
use super::topology::{Names, Use, refuse_names};
use crate::broker::{BrokerError, Fault, Place, Source};
use crate::config::{DeliveryGuarantee, Topology};

/// How long a topic that was created may take until it has a leader.
const LEADER_MAX: Duration = Duration::from_secs(15);

/// Declares or verifies what `source` needs. Returns warnings.
pub(super) async fn prepare(
    cluster: &Cluster,
    source: &Source,
    durability: Durability,
) -> Result<Vec<String>, BrokerError> {
    refuse_combinations(cluster, source)?;
    let names = Names::of(&source.settings);
    let mut findings = Findings::default();
    let sources = sources(cluster, &names, &mut findings).await?;
    let ours = names.ours(&sources, &source.waits);
    let all = || sources.iter().cloned().chain(ours.iter().map(|(name, _)| name.clone()));
    refuse_names(source, all())?;
    let mut facts = BTreeMap::new();
    let known = describe(cluster, all().collect(), &mut findings).await?;
    for topic in &sources {
        match known.get(topic) {
            None => findings.wrong.push((
                Fault::Missing,
                format!("topic `{topic}` is missing; create it with the partitions and replicas it needs (kafka-topics.sh --create --topic {topic} --partitions 6)"),
            )),
            Some(found) => {
                look_at_source(topic, found, durability, source, &mut findings);
                facts.insert(topic.clone(), found.clone());
            }
        }
    }
    for kind in [Kind::Source, Kind::Waits, Kind::Suspects] {
        look_at_group(cluster, names.group_of(kind), &mut findings).await?;
    }
    let missing: Vec<_> = ours.iter().filter(|(name, _)| !known.contains_key(name)).collect();
    for (name, role) in ours.iter().filter(|(name, _)| known.contains_key(name)) {
        let source = facts.get(role.topic());
        look_at_ours(name, role, &known[name], source, durability, &mut findings);
    }
    match source.settings.topology {
        Topology::None => {}
        Topology::Verify => findings.wrong.extend(missing.iter().map(|(name, role)| {
            (Fault::Missing, format!("topic `{name}` is missing; create it beforehand ({}), or use `topology = \"declare\"`", line(role, facts.get(role.topic()))))
        })),
        Topology::Declare if findings.wrong.is_empty() => {
            let wanted = missing.into_iter().filter_map(|(name, role)| {
                Some((name.clone(), role.clone(), facts.get(role.topic())?.clone()))
            });
            create(cluster, source, wanted.collect()).await?;
        }
        Topology::Declare => {}
    }
    findings.into_result(source)
}

/// What cannot be had together.
fn refuse_combinations(cluster: &Cluster, source: &Source) -> Result<(), BrokerError> {
    let settings = &source.settings;
    let is_new_protocol = cluster.clients.consumer("").get("group.protocol") == Some("consumer");
    if is_new_protocol && settings.pattern.is_some() {
        let text = "`pattern` does not go with properties.\"group.protocol\" = \"consumer\": the broker would match it, and nothing keeps it from matching our own waits and dead letters; name the `topics`, or use the classic protocol";
        return Err(BrokerError::new(Fault::Other, text));
    }
    if settings.delivery_guarantee != DeliveryGuarantee::Transactional {
        return Ok(());
    }
    let refused = [
        (
            "idempotency",
            settings.idempotency.is_some(),
            "a claim is completed before the transaction is, and what it held back would be lost with a crash in between",
        ),
        (
            "pattern",
            settings.pattern.is_some(),
            "topics that are found later have no waits and dead letters that a transaction could write to; name the `topics`",
        ),
    ];
    let refused: Vec<String> = refused
        .iter()
        .filter(|(_, is_given, _)| *is_given)
        .map(|(key, _, why)| {
            format!(
                "`{key}` does not go with delivery_guarantee = \"transactional\": {why}; remove one of the two"
            )
        })
        .collect();
    if refused.is_empty() {
        Ok(())
    } else {
        let lines: Vec<&str> = refused.iter().map(String::as_str).collect();
        Err(BrokerError::new(Fault::Other, under(source, &lines)))
    }
}

/// What a topic takes; `None` if there is none of this name.
pub(super) async fn limit_of(cluster: &Cluster, topic: &str) -> Result<Option<Limit>, BrokerError> {
    let known = describe(cluster, vec![topic.to_owned()], &mut Findings::default()).await?;
    Ok(known.get(topic).map(|facts| Limit {
        bytes_max: facts.record_max(),
        needs_key: facts.settings.get("cleanup.policy").is_some_and(|it| it.contains("compact")),
    }))
}

/// Creates what is missing around one topic, for a copy to `place`: a pattern finds topics that were not there at the
/// start, and not every wait is a policy's.
pub(super) async fn create_around(
    cluster: &Cluster,
    source: &Source,
    topic: &str,
    place: Place,
) -> Result<(), BrokerError> {
    let names = Names::of(&source.settings);
    let mut waits = source.waits.clone();
    if let Place::Wait(wait) = place
        && !waits.contains(&wait)
    {
        waits.push(wait);
    }
    let ours = names.ours(&[topic.to_owned()], &waits);
    let all = ours.iter().map(|(name, _)| name.clone()).chain([topic.to_owned()]).collect();
    let known = describe(cluster, all, &mut Findings::default()).await?;
    let Some(facts) = known.get(topic) else { return Ok(()) };
    let missing = ours.into_iter().filter(|(name, _)| !known.contains_key(name));
    let wanted = missing.map(|(name, role)| (name, role, facts.clone())).collect();
    create(cluster, source, wanted).await
}

/// A line for each topic that would be created.
pub(super) fn lines(source: &Source) -> Vec<String> {
    let names = Names::of(&source.settings);
    let topics = names.topics.iter().map(|topic| format!("topic `{topic}`: must exist"));
    let ours = names.ours(&names.topics, &source.waits);
    topics
        .chain(ours.iter().map(|(name, role)| format!("topic `{name}`: {}", line(role, None))))
        .collect()
}

fn line(role: &Use, facts: Option<&Facts>) -> String {
    let (size, in_sync) =
        facts.map_or((RECORD_MAX, 1), |facts| (facts.record_max(), facts.in_sync()));
    let shape = match facts {
        Some(facts) => {
            format!("{} partitions, {} replicas", partitions(role, facts), facts.replication)
        }
        None => format!("partitions and replicas of `{}`", role.topic()),
    };
    let settings = role.settings(size, in_sync);
    settings.iter().fold(shape, |line, (name, value)| format!("{line}, {name}={value}"))
}

fn partitions(role: &Use, facts: &Facts) -> i32 {
    match role {
        // One at a time, over all of them.
        Use::Suspects(_) => 1,
        Use::Dead(_) | Use::Redrive(_) | Use::Wait(..) => facts.partitions,
    }
}

/// The topics that are drained: those that are named, or those that were found by the pattern before.
async fn sources(
    cluster: &Cluster,
    names: &Names,
    findings: &mut Findings,
) -> Result<Vec<String>, BrokerError> {
    if !names.topics.is_empty() {
        return Ok(names.topics.clone());
    }
    let known = cluster.topics(&format!("looking for topics at {cluster}")).await?;
    let is_foreign = |topic: &&String| names.is_foreign(topic, &known);
    findings.warnings.extend(known.iter().filter(is_foreign).map(|topic| format!(
        "topic `{topic}` reads like one of ours around `{}`, which is not there, and is left alone: it may belong to a group whose name ends with `.{}`",
        names.topic_of(topic, None), names.group
    )));
    Ok(names.sources(&known))
}

/// Those of these topics that are there, as they are.
async fn describe(
    cluster: &Cluster,
    topics: Vec<String>,
    findings: &mut Findings,
) -> Result<BTreeMap<String, Facts>, BrokerError> {
    let attempt = format!("looking for topics at {cluster}");
    let metadata = cluster.ask(&attempt, move |client| {
        let mut known = BTreeMap::new();
        for name in topics {
            let metadata = client.fetch_metadata(Some(&name), ANSWER_MAX)?;
            let Some(topic) = metadata.topics().first().filter(|topic| topic.error().is_none())
            else {
                continue;
            };
            let replicas = topic.partitions().iter().map(|partition| partition.replicas().len());
            let facts = Facts {
                partitions: topic.partitions().len() as i32,
                replication: replicas.min().unwrap_or(0) as u32,
                settings: BTreeMap::new(),
            };
            known.insert(name, facts);
        }
        Ok(known)
    });
    let mut known = metadata.await?;
    if known.is_empty() {
        // A question about nothing is an error to the client.
        return Ok(known);
    }
    let admin = admin(cluster)?;
    let resources: Vec<_> = known.keys().map(|name| ResourceSpecifier::Topic(name)).collect();
    let described = admin.describe_configs(&resources, &options()).await;
    let described = described.map_err(|error| fault::fault(&attempt, &error))?;
    for (name, resource) in known.keys().cloned().collect::<Vec<_>>().into_iter().zip(described) {
        match (resource, known.get_mut(&name)) {
            (Ok(resource), Some(facts)) => facts.settings = settings(resource),
            (Err(code), _) => findings.warnings.push(format!(
                "the settings of topic `{name}` could not be read ({code}), so nobody looked at them"
            )),
            (Ok(_), None) => {}
        }
    }
    Ok(known)
}

fn settings(resource: ConfigResource) -> BTreeMap<String, String> {
    let entries = resource.entries.into_iter();
    entries.filter_map(|entry| Some((entry.name, entry.value?))).collect()
}

fn admin(cluster: &Cluster) -> Result<AdminClient<Quiet>, BrokerError> {
    let context = Quiet(cluster.watch.clone());
    AdminClient::from_config_and_context(&cluster.clients.plain(), context)
        .map_err(|error| fault::fault(&format!("connecting to {cluster}"), &error))
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ANSWER_MAX)).operation_timeout(Some(ANSWER_MAX))
}

async fn create(
    cluster: &Cluster,
    source: &Source,
    wanted: Vec<(String, Use, Facts)>,
) -> Result<(), BrokerError> {
    if wanted.is_empty() {
        return Ok(());
    }
    let attempt = format!("subscription `{}`: creating topics", source.name);
    let settings: Vec<_> = wanted
        .iter()
        .map(|(_, role, facts)| role.settings(facts.record_max(), facts.in_sync()))
        .collect();
    let topics: Vec<_> = wanted
        .iter()
        .zip(&settings)
        .map(|((name, role, facts), settings)| {
            let replication = TopicReplication::Fixed(facts.replication as i32);
            let topic = NewTopic::new(name, partitions(role, facts), replication);
            settings.iter().fold(topic, |topic, (name, value)| topic.set(name, value))
        })
        .collect();
    let created = admin(cluster)?.create_topics(&topics, &options()).await;
    let created = created.map_err(|error| fault::fault(&attempt, &error))?;
    let refused: Vec<String> = created
        .into_iter()
        .filter_map(Result::err)
        // Another process of the service was faster.
        .filter(|(_, code)| *code != RDKafkaErrorCode::TopicAlreadyExists)
        .map(|(name, code)| fault::fault_of_code(&format!("{attempt}: `{name}`"), code).text)
        .collect();
    if !refused.is_empty() {
        return Err(BrokerError::new(Fault::Other, refused.join("\n")));
    }
    let names: Vec<String> = wanted.into_iter().map(|(name, ..)| name).collect();
    wait_for_leaders(cluster, &attempt, names).await
}

async fn wait_for_leaders(
    cluster: &Cluster,
    attempt: &str,
    names: Vec<String>,
) -> Result<(), BrokerError> {
    let deadline = tokio::time::Instant::now() + LEADER_MAX;
    for name in names {
        loop {
            let topic = name.clone();
            let ready = cluster.ask(attempt, move |client| {
                let metadata = client.fetch_metadata(Some(&topic), ANSWER_MAX)?;
                let topic = metadata.topics().first();
                Ok(topic.is_some_and(|topic| {
                    let partitions = topic.partitions();
                    !partitions.is_empty() && partitions.iter().all(|it| it.leader() >= 0)
                }))
            });
            if ready.await? {
                break;
            }
            if tokio::time::Instant::now() > deadline {
                let text = format!("{attempt}: `{name}` has no leader yet");
                return Err(BrokerError::new(Fault::Unreachable, text));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

/// A group that assigns its partitions in another way would refuse us, or we would stop it.
async fn look_at_group(
    cluster: &Cluster,
    group: String,
    findings: &mut Findings,
) -> Result<(), BrokerError> {
    let attempt = format!("looking for consumer group `{group}`");
    let asked = group.clone();
    let found = cluster.ask(&attempt, move |client| {
        let list = client.fetch_group_list(Some(&asked), ANSWER_MAX)?;
        Ok(list.groups().iter().find(|found| found.name() == asked).map(|found| {
            let protocols = (found.protocol_type().to_owned(), found.protocol().to_owned());
            (found.members().is_empty(), protocols)
        }))
    });
    let Some((false, (kind, protocol))) = found.await? else { return Ok(()) };
    let consumer = cluster.clients.consumer(&group);
    let ours = consumer.get("partition.assignment.strategy").unwrap_or(&protocol).to_owned();
    if !kind.is_empty() && kind != "consumer" {
        findings.wrong.push((
            Fault::Mismatch,
            format!("group `{group}` is in use by members of the kind `{kind}`; use another group"),
        ));
    } else if !protocol.is_empty() && !ours.split(',').any(|known| known.trim() == protocol) {
        findings.wrong.push((Fault::Mismatch, format!(
            "group `{group}` is in use with the assignment `{protocol}`, and we would ask for `{ours}`; set properties.\"partition.assignment.strategy\" to what its members use"
        )));
    } else if consumer.get("group.protocol") == Some("consumer") {
        let policy = migration_policy(cluster).await;
        if let Some(policy) =
            policy.filter(|it| !matches!(it.as_str(), "upgrade" | "bidirectional"))
        {
            findings.wrong.push((Fault::Mismatch, format!(
                "group `{group}` is in use by members of the classic protocol, and the brokers' group.consumer.migration.policy=`{policy}` lets none of the new one join them; stop those first, set the policy to `bidirectional`, or leave out properties.\"group.protocol\""
            )));
        }
    }
    Ok(())
}

/// Whether the brokers let members of the new protocol into a group of the classic one; `None` where they do not say,
/// and then health does, once we were refused.
async fn migration_policy(cluster: &Cluster) -> Option<String> {
    let attempt = format!("looking for the brokers of {cluster}");
    let brokers = cluster.ask(&attempt, |client| {
        let metadata = client.fetch_metadata(Some("__consumer_offsets"), ANSWER_MAX)?;
        Ok(metadata.brokers().first().map(|broker| broker.id()))
    });
    let broker = ResourceSpecifier::Broker(brokers.await.ok()??);
    let described = admin(cluster).ok()?.describe_configs([&broker], &options()).await.ok()?;
    let found = described.into_iter().next()?.ok()?;
    settings(found).remove("group.consumer.migration.policy").map(|it| it.to_lowercase())
}
