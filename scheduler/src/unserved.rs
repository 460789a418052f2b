//! What is said of a stage for whose class nobody takes tasks.

use std::time::Duration;

use rowmill_wire::name::ExecutorName;

/// The executors of a moment.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    /// Those that take tasks.
    pub(crate) serving: Vec<ExecutorName>,
    /// Those that have joined and take none for now, with the reason.
    pub(crate) closed: Vec<(ExecutorName, String)>,
}

impl Crowd {
    /// Whether somebody takes tasks of a class.
    pub(crate) fn serves(&self, class: &str) -> bool {
        self.serving.iter().any(|executor| executor.serves(class))
    }

    /// Why a stage that needs the class has waited so long, and what is to be done.
    pub(crate) fn reason(&self, stage: usize, class: &str, waited: Duration) -> String {
        let seconds = waited.as_secs();
        if let Some((name, why)) = self.closed.iter().find(|(name, _)| name.serves(class)) {
            return format!(
                "stage {stage} needs an executor of class {class}; none has taken tasks in {seconds} s: executor {name} \
                 is there, but {why}"
            );
        }
        let mut served: Vec<&str> = self.serving.iter().flat_map(ExecutorName::classes).map(String::as_str).collect();
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
        let mut crowd =
            Crowd { serving: vec![name(&["io"])], closed: vec![(name(&["cpu"]), "its disk is full".into())] };
        let waited = Duration::from_secs(7);
        assert!(crowd.serves("io") && !crowd.serves("cpu"));
        let told = crowd.reason(3, "cpu", waited);
        assert!(told.contains("its disk is full") && told.contains("7 s") && !told.contains("start one"), "{told}");
        let told = crowd.reason(3, "gpu", waited);
        assert!(told.contains("executors for io;") && told.contains("--class gpu"), "{told}");
        crowd.serving.clear();
        assert!(crowd.reason(3, "gpu", waited).contains("no executors at all"));
    }
}
