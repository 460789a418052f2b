//! What is said of a stage for whose class nobody takes tasks.

use std::time::Duration;

use rowmill_wire::class::Demand;
use rowmill_wire::name::ExecutorName;

/// The executors of a moment.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    /// Those that take tasks, and how much memory these share; zero where that was not said.
    pub(crate) serving: Vec<(ExecutorName, u64)>,
    /// Those that have joined and take none for now, with the reason.
    pub(crate) closed: Vec<(ExecutorName, String)>,
}

impl Crowd {
    /// Whether somebody takes tasks that ask for this.
    pub(crate) fn serves(&self, demand: &Demand) -> bool {
        let enough = |memory_bytes: u64| memory_bytes == 0 || memory_bytes >= demand.memory_bytes;
        self.serving.iter().any(|(name, memory_bytes)| name.serves(&demand.class) && enough(*memory_bytes))
    }

    /// Why a stage that needs the class has waited so long, and what is to be done.
    pub(crate) fn reason(&self, stage: usize, demand: &Demand, waited: Duration) -> String {
        let (class, seconds) = (&*demand.class, waited.as_secs());
        let sizes = self.serving.iter().filter(|(name, _)| name.serves(class)).map(|(_, memory_bytes)| *memory_bytes);
        if let Some(most) = sizes.max() {
            return format!(
                "stage {stage} needs {} bytes of memory for each partition; the largest executor of class {class} has \
                 {most}, and none with more has come in {seconds} s; ask for less with `resources: {{memory: ...}}`, or \
                 start one with a larger `execution.memory`",
                demand.memory_bytes
            );
        }
        if let Some((name, why)) = self.closed.iter().find(|(name, _)| name.serves(class)) {
            return format!(
                "stage {stage} needs an executor of class {class}; none has taken tasks in {seconds} s: executor {name} \
                 is there, but {why}"
            );
        }
        let mut served: Vec<&str> =
            self.serving.iter().flat_map(|(name, _)| name.classes()).map(String::as_str).collect();
        served.sort_unstable();
        served.dedup();
        let others = if served.is_empty() {
            "there are no executors at all".to_owned()
        } else {
            format!("there are executors for {}", served.join(", "))
        };
        format!(
            "stage {stage} needs an executor of class {class}; none has come in {seconds} s, {others}; start one with \
             `rowmill executor --class {class}`"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_names_who_is_there_and_takes_nothing() {
        let name = |classes: &[&str]| ExecutorName::try_new(classes).unwrap();
        let mut crowd = Crowd {
            serving: vec![(name(&["io"]), 1_000)],
            closed: vec![(name(&["cpu"]), "its disk is full".to_owned())],
        };
        let waited = Duration::from_secs(7);
        let (cpu, gpu, io) = (Demand::plain("cpu"), Demand::plain("gpu"), Demand::plain("io"));
        assert!(crowd.serves(&io) && crowd.serves(&io.clone().with_memory(1_000)) && !crowd.serves(&cpu));
        let told = crowd.reason(3, &cpu, waited);
        assert!(told.contains("its disk is full") && told.contains("7 s") && !told.contains("start one"), "{told}");
        let large = io.with_memory(1_001);
        assert!(!crowd.serves(&large));
        let told = crowd.reason(3, &large, waited);
        assert!(told.contains("1001 bytes") && told.contains("has 1000,"), "{told}");
        let told = crowd.reason(3, &gpu, waited);
        assert!(told.contains("executors for io;") && told.contains("--class gpu"), "{told}");
        crowd.serving.clear();
        assert!(crowd.reason(3, &gpu, waited).contains("no executors at all"));
    }
}
