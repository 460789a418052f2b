//! What the store and the executors do with a message.

use super::{Checked, Event, Message, Node, World};
use crate::coordinator::{RunEnd, TaskResult};
use crate::journal::CommitAnswer;
use crate::resources::Resources;

impl World {
    pub(super) fn at_store(&mut self, message: Message) -> Checked {
        let store_ms = self.now + self.store_ahead_ms;
        match message {
            Message::Acquire { scheduler, life, request } => {
                let owner = scheduler as u64;
                let answer = self.lease.acquire(owner, 1_500, store_ms);
                self.send(Node::Store, Node::Scheduler(scheduler), Message::Acquired { life, request, answer });
            }
            Message::Renew { scheduler, life, request, fence } => {
                let prolonged = self.lease.renew(fence, 1_500, store_ms);
                self.send(Node::Store, Node::Scheduler(scheduler), Message::Renewed { life, request, prolonged });
            }
            Message::Commit { scheduler, attempt } => {
                let answer = self.commits.commit(&self.lease, attempt);
                match answer {
                    CommitAnswer::Committed => self.seen.commits += 1,
                    _ => self.seen.refused_commits += 1,
                }
                if self.commits.taken.get(&attempt.key).is_some_and(|times| *times > 1) {
                    return Err(format!("{} was committed twice", attempt.key));
                }
                self.send(Node::Store, Node::Scheduler(scheduler), Message::Answer { attempt, answer });
            }
            Message::End { scheduler, fence, run, end }
                if self.commits.end(&self.lease, fence, run, end == RunEnd::Succeeded) =>
            {
                self.send(Node::Store, Node::Scheduler(scheduler), Message::Ended { run });
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn at_executor(&mut self, number: usize, message: Message) {
        match message {
            Message::Launch { attempt, needs } => {
                let executor = &mut self.executors[number];
                if attempt.fence < executor.fence || !executor.seen.insert(attempt) {
                    return;
                }
                executor.fence = attempt.fence;
                let used = executor.running.values().fold(Resources::default(), |sum, held| sum.plus(held));
                if !used.plus(&needs).fits_in(&executor.spec.capacity) {
                    self.report(number, attempt, TaskResult::HandedBack);
                    return;
                }
                executor.running.insert(attempt, needs);
                let life = executor.life;
                let over = self.now + self.dice.between(20, 900);
                self.at(over, Event::TaskOver(number, life, attempt));
            }
            Message::Cancel { attempt } => {
                self.executors[number].seen.insert(attempt);
                self.executors[number].running.remove(&attempt);
            }
            _ => {}
        }
    }
}
