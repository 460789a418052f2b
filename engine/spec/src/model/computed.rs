//! The kinds of steps that compute on this machine, on a GPU or a CPU: similarity searches and models.

use indexmap::IndexMap;

use crate::span::{Span, Spanned};
use crate::template::Template;

/// `gpu:` a computation for which there are kernels; the CPU gives equal results.
#[derive(Debug, Clone)]
pub struct GpuStep {
    /// The step or source whose rows it takes.
    pub from: Spanned<String>,
    /// The similarity search.
    pub top_k: Spanned<TopK>,
}

/// The rows of a corpus of embeddings that are most similar to each item's.
#[derive(Debug, Clone)]
pub struct TopK {
    /// The column of embeddings to search with: lists of floats, of one length.
    pub column: Spanned<String>,
    /// The file of the corpus: Parquet, or an Arrow IPC file.
    pub corpus: Template,
    /// The corpus's column of embeddings; named as `column` where absent.
    pub corpus_column: Option<Spanned<String>>,
    /// The corpus's column that names a row; the row's number, from 0, where absent.
    pub id: Option<Spanned<String>>,
    /// Rows for each item at most.
    pub k: Spanned<u64>,
    /// What similar means; `cosine` where absent.
    pub metric: Option<Spanned<Metric>>,
}

/// What similar means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Metric {
    /// The cosine of the angle; largest first.
    Cosine,
    /// The dot product; largest first.
    Dot,
    /// The Euclidean distance; smallest first.
    L2,
}

/// `model:` a model in ONNX.
#[derive(Debug, Clone)]
pub struct ModelStep {
    /// The step or source whose rows it takes.
    pub from: Spanned<String>,
    /// The model's file.
    pub file: Template,
    /// The columns of each of the model's inputs, by the input's name.
    pub inputs: Spanned<IndexMap<String, Vec<Spanned<String>>>>,
    /// The model's output of each column that the step adds; all outputs, by their own names, where absent.
    pub output: Option<Spanned<IndexMap<String, Spanned<String>>>>,
    /// Where it runs; `cpu` where absent.
    pub device: Option<Spanned<ModelDevice>>,
}

/// Where a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ModelDevice {
    /// On the CPU.
    Cpu,
    /// On an NVIDIA GPU; an error where there is none.
    Cuda,
    /// On an NVIDIA GPU where there is one, else on the CPU.
    Auto,
}

words!(Metric { Cosine = "cosine", Dot = "dot", L2 = "l2" });
words!(ModelDevice { Cpu = "cpu", Cuda = "cuda", Auto = "auto" });

impl GpuStep {
    /// The `k` rows of `corpus` that are most similar to `column`, everything else as by default.
    pub fn top_k(from: impl Into<String>, column: impl Into<String>, corpus: Template, k: u64) -> Self {
        let top_k = TopK {
            column: Spanned::bare(column.into()),
            corpus,
            corpus_column: None,
            id: None,
            k: Spanned::bare(k),
            metric: None,
        };
        GpuStep { from: Spanned::bare(from.into()), top_k: Spanned::bare(top_k) }
    }

    /// Where an option stands; nowhere if it is not set.
    pub fn place(&self, option: &str) -> Span {
        let top_k = &self.top_k.value;
        let of = |name: &Option<Spanned<String>>| name.as_ref().map_or(Span::NONE, |name| name.span);
        match option {
            "column" => top_k.column.span,
            "corpus" => top_k.corpus.span,
            "corpus_column" => of(&top_k.corpus_column),
            "id" => of(&top_k.id),
            "k" => top_k.k.span,
            _ => Span::NONE,
        }
    }
}

impl ModelStep {
    /// A model with the columns of its inputs, everything else as by default.
    pub fn new(from: impl Into<String>, file: Template, inputs: IndexMap<String, Vec<String>>) -> Self {
        let bare = |names: Vec<String>| names.into_iter().map(Spanned::bare).collect();
        let inputs = inputs.into_iter().map(|(tensor, columns)| (tensor, bare(columns))).collect();
        ModelStep { from: Spanned::bare(from.into()), file, inputs: Spanned::bare(inputs), output: None, device: None }
    }

    /// Where an option stands; nowhere if it is not set.
    pub fn place(&self, option: &str) -> Span {
        match option {
            "file" => self.file.span,
            "inputs" => self.inputs.span,
            "output" => self.output.as_ref().map_or(Span::NONE, |output| output.span),
            "device" => self.device.as_ref().map_or(Span::NONE, |device| device.span),
            _ => Span::NONE,
        }
    }
}
