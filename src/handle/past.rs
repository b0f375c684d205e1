//! What a server shows of the time before, from one process to the next.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use super::Shared;
use crate::inspect::{EndedInfo, Sample};
use crate::time::deadline::Moment;

/// What a server shows of the time before, as it goes over to the next process. For people to look at: a process that cannot
/// read it goes on without, and so does one that is not sent any.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Past {
    /// The last first.
    #[serde(default)]
    ended: Vec<EndedInfo>,
    #[serde(default)]
    samples: Vec<Sample>,
}

impl Past {
    /// The most of it, bytes: as much of the ends as finds room there, the last ones.
    const MOST: usize = 64 * 1024;

    fn encode(mut self) -> Vec<u8> {
        loop {
            let bytes = serde_json::to_vec(&self).unwrap_or_default();
            if bytes.len() <= Self::MOST || self.ended.is_empty() {
                return bytes;
            }
            self.ended.truncate(self.ended.len() / 2);
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let past: serde_json::Result<Self> = serde_json::from_slice(bytes);
        past.unwrap_or_else(|error| {
            log::debug!(error:%; "what the former process showed cannot be read");
            Self::default()
        })
    }

    /// So much later.
    pub(crate) fn after(mut self, time: Duration) -> Self {
        for one in &mut self.ended {
            one.ago = one.ago.saturating_add(time);
        }
        for one in &mut self.samples {
            one.ago = one.ago.saturating_add(time);
        }
        self
    }
}

impl Shared {
    /// What is shown here, for the next process; but for ends that are `told` of.
    pub(crate) fn past(&self, told: &mut HashSet<u64>) -> Vec<u8> {
        let past = Past {
            samples: self.samples(),
            ..self.past_since(told)
        };
        past.encode()
    }

    /// The ends that are not `told` of, if there are any.
    pub(crate) fn past_rest(&self, told: &mut HashSet<u64>) -> Option<Vec<u8>> {
        Some(self.past_since(told))
            .filter(|past| !past.ended.is_empty())
            .map(Past::encode)
    }

    fn past_since(&self, told: &mut HashSet<u64>) -> Past {
        let ended = self.ended().into_iter();
        Past {
            ended: ended.filter(|one| told.insert(one.id)).collect(),
            samples: Vec::new(),
        }
    }

    /// Goes on with what a predecessor showed: its samples, where they are taken here, and its ends, which are answered.
    pub(super) fn go_on_showing(
        &self,
        past: Vec<Past>,
        samples: &mut VecDeque<(Moment, Sample)>,
    ) -> Vec<(Moment, EndedInfo)> {
        let now = self.clock.now();
        // Taken before it was known what a predecessor had counted.
        samples.clear();
        let mut ended = Vec::new();
        for past in past {
            ended.extend(past.ended.into_iter().map(|one| (now.before(one.ago), one)));
            if !self.metrics().is_empty() {
                samples.extend(
                    past.samples
                        .into_iter()
                        .map(|one| (now.before(one.ago), one)),
                );
            }
        }
        ended
    }
}
