//! The network: delays, and messages that are lost, come late or come twice.

use super::{Event, Message, Node, World};
use crate::coordinator::TaskResult;
use crate::ids::AttemptId;

impl World {
    pub(super) fn cut_off(&self, a: Node, b: Node) -> bool {
        let store_down = self.now < self.store_down_until && (a == Node::Store || b == Node::Store);
        store_down || [(a, b), (b, a)].iter().any(|pair| self.cut.get(pair).is_some_and(|until| self.now < *until))
    }

    pub(super) fn send(&mut self, from: Node, to: Node, message: Message) {
        if self.faulty() {
            if self.dice.percent(5) {
                return;
            }
            if self.dice.percent(5) {
                let delay = self.dice.between(1, 2_000);
                self.at(self.now + delay, Event::Deliver(from, to, message.clone()));
            }
            let delay = if self.dice.percent(5) { self.dice.between(100, 3_000) } else { self.dice.between(1, 40) };
            self.at(self.now + delay, Event::Deliver(from, to, message));
        } else {
            let delay = self.dice.between(1, 15);
            self.at(self.now + delay, Event::Deliver(from, to, message));
        }
    }

    pub(super) fn report(&mut self, number: usize, attempt: AttemptId, result: TaskResult) {
        for scheduler in 0..2 {
            let message = Message::Finished { attempt, result };
            self.send(Node::Executor(number), Node::Scheduler(scheduler), message);
        }
    }
}
