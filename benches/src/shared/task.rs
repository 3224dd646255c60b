//! What a contender is told on its command line: `URL QUEUES PREFIX MESSAGES PREFETCH STYLE
//! GROUP`.

use std::error::Error;

/// One run of a contender.
#[derive(Clone, Debug)]
pub struct Task {
    pub url: String,
    /// The queues are `PREFIX.0`, `PREFIX.1`, and so on; on Kafka it is the topic.
    pub prefix: String,
    /// Queues, or partitions.
    pub queues: usize,
    /// How many messages there are, over all queues.
    pub messages: u64,
    pub prefetch: u16,
    /// Which of the contender's ways is run.
    pub style: String,
    /// The consumer group, where there are groups.
    pub group: String,
}

impl Task {
    pub fn from_arguments() -> Result<Self, Box<dyn Error>> {
        let words: Vec<String> = std::env::args().skip(1).collect();
        let [url, queues, prefix, messages, prefetch, style, group] = words.as_slice() else {
            return Err("use: URL QUEUES PREFIX MESSAGES PREFETCH STYLE GROUP".into());
        };
        Ok(Self {
            url: url.clone(),
            prefix: prefix.clone(),
            queues: queues.parse()?,
            messages: messages.parse()?,
            prefetch: prefetch.parse()?,
            style: style.clone(),
            group: group.clone(),
        })
    }

    pub fn names(&self) -> impl Iterator<Item = String> + use<> {
        let prefix = self.prefix.clone();
        (0..self.queues).map(move |number| format!("{prefix}.{number}"))
    }
}
