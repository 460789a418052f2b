//! Faults: processes that die, stop and come back, cut connections, clocks that jump.

use super::{Event, Node, World};
use crate::clock::Steady;
use crate::election::{ElectionOptions, Elector};
use crate::ids::{ExecutorId, Fence};
use crate::sim::Dice;

impl World {
    pub(super) fn fault(&mut self) {
        let executors = self.executors.len() as u64;
        let any = |dice: &mut Dice| match dice.between(0, 2 + executors) {
            0 => Node::Store,
            number @ 1..=2 => Node::Scheduler(number as usize - 1),
            number => Node::Executor((number - 3) as usize % executors as usize),
        };
        match self.dice.between(0, 9) {
            0..=2 => {
                let number = self.dice.between(0, executors - 1) as usize;
                self.kill(Node::Executor(number));
            }
            3 => {
                let number = self.dice.between(0, 1) as usize;
                self.kill(Node::Scheduler(number));
            }
            4 => {
                self.kill(Node::Scheduler(self.leading().unwrap_or(0)));
                let number = self.dice.between(0, executors - 1) as usize;
                self.kill(Node::Executor(number));
            }
            5 => {
                let node = any(&mut self.dice);
                if node != Node::Store {
                    let until = self.now + self.dice.between(200, 4_000);
                    self.paused_until.insert(node, until);
                }
            }
            6..=7 => {
                let (a, b) = (any(&mut self.dice), any(&mut self.dice));
                let until = self.now + self.dice.between(200, 4_000);
                self.cut.insert((a, b), until);
            }
            8 => {
                let node = any(&mut self.dice);
                if node == Node::Store {
                    self.store_ahead_ms += self.dice.between(0, 3_000);
                } else {
                    let jump = self.dice.between(0, 8_000) as i64 - 4_000;
                    *self.ahead_ms.entry(node).or_default() += jump;
                }
            }
            _ => self.store_down_until = self.now + self.dice.between(100, 2_000),
        }
    }

    fn leading(&self) -> Option<usize> {
        self.schedulers.iter().position(|scheduler| scheduler.alive && scheduler.leader.is_some())
    }

    fn kill(&mut self, node: Node) {
        match node {
            Node::Scheduler(number) => {
                let scheduler = &mut self.schedulers[number];
                if !scheduler.alive {
                    return;
                }
                scheduler.alive = false;
                scheduler.leader = None;
            }
            Node::Executor(number) => {
                let executor = &mut self.executors[number];
                if !executor.alive {
                    return;
                }
                executor.alive = false;
                executor.running.clear();
                executor.seen.clear();
            }
            Node::Store => return,
        }
        let back = self.now + self.dice.between(100, 3_000);
        self.at(back, Event::Restart(node));
    }

    pub(super) fn restart(&mut self, node: Node) {
        self.paused_until.remove(&node);
        match node {
            Node::Scheduler(number) => {
                let scheduler = &mut self.schedulers[number];
                scheduler.alive = true;
                scheduler.life += 1;
                scheduler.elector = Elector::new(ElectionOptions { ttl_ms: 1_500, answer_ms: 300 });
                scheduler.steady = Steady::default();
                let life = scheduler.life;
                self.at(self.now, Event::SchedulerTick(number, life));
            }
            Node::Executor(number) => {
                let executor = &mut self.executors[number];
                executor.alive = true;
                executor.life += 1;
                executor.fence = Fence(0);
                executor.spec.id = ExecutorId(self.next_executor);
                self.next_executor += 1;
                let life = executor.life;
                self.at(self.now, Event::ExecutorBeat(number, life));
            }
            Node::Store => {}
        }
    }
}
