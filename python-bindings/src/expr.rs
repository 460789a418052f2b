//! Expressions over columns.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode as _};
use datafusion::common::{Column, DataFusionError, Result, ScalarValue};
use datafusion::execution::FunctionRegistry as _;
use datafusion::logical_expr::expr::{AggregateFunction, ScalarFunction, WindowFunction};
use datafusion::logical_expr::{
    BinaryExpr, Case, Expr, Like, Operator, SortExpr, WindowFrame, WindowFrameBound, WindowFrameUnits,
    WindowFunctionDefinition, cast, lit, try_cast,
};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt, PyString};
use rowmill::spec::LogicalType;
use rowmill_engine::types::arrow_type;

use crate::errors::from_engine;
use crate::session::shared;

/// An expression.
#[pyclass(frozen, from_py_object, module = "rowmill._native", name = "Expression")]
#[derive(Clone)]
pub(crate) struct PyExpr {
    pub(crate) expr: Expr,
}

/// An expression to sort by.
#[pyclass(frozen, from_py_object, module = "rowmill._native", name = "SortKey")]
#[derive(Clone)]
pub(crate) struct PySort {
    pub(crate) sort: SortExpr,
}

impl From<Expr> for PyExpr {
    fn from(expr: Expr) -> Self {
        PyExpr { expr }
    }
}

/// What an expression without a name is called: its text, without the tables that columns come from.
pub(crate) fn plain_name(expr: &Expr) -> String {
    let plain = expr.clone().transform(|part| {
        Ok(match part {
            Expr::Column(column) => Transformed::yes(Expr::Column(Column::new_unqualified(column.name))),
            other => Transformed::no(other),
        })
    });
    plain.map_or_else(|_| expr.schema_name().to_string(), |plain| plain.data.human_display().to_string())
}

/// An Arrow type by its logical name: `int64`, `decimal(12, 2)`, `list<string>`.
pub(crate) fn parse_type(name: &str) -> PyResult<DataType> {
    let kind = LogicalType::parse(name).map_err(|error| PyValueError::new_err(format!("type `{name}`: {error}")))?;
    Ok(arrow_type(&kind))
}

/// A column by its exact name.
#[pyfunction]
pub(crate) fn column(name: &str) -> PyExpr {
    Expr::Column(Column::new_unqualified(name)).into()
}

/// A constant of a Python value; with `kind`, of this logical type.
#[pyfunction]
#[pyo3(signature = (value, kind = None))]
pub(crate) fn literal(value: &Bound<'_, PyAny>, kind: Option<&str>) -> PyResult<PyExpr> {
    let scalar = scalar(value)?;
    match kind {
        Some(kind) => {
            let kind = parse_type(kind)?;
            let scalar = scalar.cast_to(&kind).map_err(|error| PyValueError::new_err(error.strip_backtrace()))?;
            Ok(lit(scalar).into())
        }
        None => Ok(lit(scalar).into()),
    }
}

/// A scalar of a Python value of a plain type; richer ones are reduced to these in Python.
fn scalar(value: &Bound<'_, PyAny>) -> PyResult<ScalarValue> {
    if value.is_none() {
        return Ok(ScalarValue::Null);
    }
    if value.is_instance_of::<PyBool>() {
        return Ok(ScalarValue::Boolean(Some(value.extract()?)));
    }
    if value.is_instance_of::<PyInt>() {
        return match value.extract::<i64>() {
            Ok(number) => Ok(ScalarValue::Int64(Some(number))),
            Err(_) => Ok(ScalarValue::UInt64(Some(value.extract()?))),
        };
    }
    if value.is_instance_of::<PyFloat>() {
        return Ok(ScalarValue::Float64(Some(value.extract()?)));
    }
    if value.is_instance_of::<PyString>() {
        return Ok(ScalarValue::Utf8(Some(value.extract()?)));
    }
    if let Ok(bytes) = value.cast::<PyBytes>() {
        return Ok(ScalarValue::Binary(Some(bytes.as_bytes().to_vec())));
    }
    let kind = value.get_type();
    Err(PyTypeError::new_err(format!("a value of type {} cannot stand in an expression", kind.name()?)))
}

/// `CASE WHEN condition THEN value ... ELSE otherwise END`
#[pyfunction]
#[pyo3(signature = (branches, otherwise))]
pub(crate) fn case(branches: Vec<(PyExpr, PyExpr)>, otherwise: Option<PyExpr>) -> PyExpr {
    let branches = branches.into_iter().map(|(when, then)| (Box::new(when.expr), Box::new(then.expr))).collect();
    Expr::Case(Case::new(None, branches, otherwise.map(|of| Box::new(of.expr)))).into()
}

/// A call of any function that SQL knows, by its name.
#[pyfunction]
#[pyo3(signature = (name, arguments, distinct = false, order_by = vec![]))]
pub(crate) fn call(
    py: Python<'_>,
    name: &str,
    arguments: Vec<PyExpr>,
    distinct: bool,
    order_by: Vec<PySort>,
) -> PyResult<PyExpr> {
    let shared = shared(py)?;
    let arguments: Vec<Expr> = arguments.into_iter().map(|one| one.expr).collect();
    let order_by: Vec<SortExpr> = order_by.into_iter().map(|one| one.sort).collect();
    if let Ok(function) = shared.state.udf(name) {
        if distinct || !order_by.is_empty() {
            return Err(PyValueError::new_err(format!(
                "`{name}` is no aggregate: it takes no distinct and no order_by"
            )));
        }
        return Ok(Expr::ScalarFunction(ScalarFunction::new_udf(function, arguments)).into());
    }
    if let Ok(function) = shared.state.udaf(name) {
        let call = AggregateFunction::new_udf(function, arguments, distinct, None, order_by, None);
        return Ok(Expr::AggregateFunction(call).into());
    }
    if let Ok(function) = shared.state.udwf(name) {
        let call = WindowFunction::new(WindowFunctionDefinition::WindowUDF(function), arguments);
        return Ok(Expr::WindowFunction(Box::new(call)).into());
    }
    Err(PyValueError::new_err(format!("there is no function `{name}`")))
}

/// Names of all functions: scalar, aggregate, window.
#[pyfunction]
pub(crate) fn function_names(py: Python<'_>) -> PyResult<(Vec<String>, Vec<String>, Vec<String>)> {
    let shared = shared(py)?;
    let state = &shared.state;
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    Ok((
        sorted(state.scalar_functions().keys().cloned().collect()),
        sorted(state.aggregate_functions().keys().cloned().collect()),
        sorted(state.window_functions().keys().cloned().collect()),
    ))
}

fn operator(symbol: &str) -> Option<Operator> {
    Some(match symbol {
        "==" => Operator::Eq,
        "!=" => Operator::NotEq,
        "<" => Operator::Lt,
        "<=" => Operator::LtEq,
        ">" => Operator::Gt,
        ">=" => Operator::GtEq,
        "+" => Operator::Plus,
        "-" => Operator::Minus,
        "*" => Operator::Multiply,
        "/" => Operator::Divide,
        "%" => Operator::Modulo,
        "&" => Operator::And,
        "|" => Operator::Or,
        "bit_and" => Operator::BitwiseAnd,
        "bit_or" => Operator::BitwiseOr,
        "bit_xor" => Operator::BitwiseXor,
        "is" => Operator::IsNotDistinctFrom,
        "is_not" => Operator::IsDistinctFrom,
        "~" => Operator::RegexMatch,
        "||" => Operator::StringConcat,
        _ => return None,
    })
}

#[pymethods]
impl PyExpr {
    /// The name of the column that it makes.
    fn name(&self) -> String {
        match &self.expr {
            Expr::Alias(alias) => alias.name.clone(),
            Expr::Column(column) => column.name.clone(),
            other => plain_name(other),
        }
    }

    /// Whether it has a name of its own: a column or an alias.
    fn is_named(&self) -> bool {
        matches!(self.expr, Expr::Alias(_) | Expr::Column(_))
    }

    fn __str__(&self) -> String {
        plain_name(&self.expr)
    }

    fn binary(&self, symbol: &str, right: &PyExpr) -> PyResult<PyExpr> {
        let operator =
            operator(symbol).ok_or_else(|| PyValueError::new_err(format!("there is no operator `{symbol}`")))?;
        let both = BinaryExpr::new(Box::new(self.expr.clone()), operator, Box::new(right.expr.clone()));
        Ok(Expr::BinaryExpr(both).into())
    }

    fn not_(&self) -> PyExpr {
        Expr::Not(Box::new(self.expr.clone())).into()
    }

    fn negative(&self) -> PyExpr {
        Expr::Negative(Box::new(self.expr.clone())).into()
    }

    fn is_null(&self) -> PyExpr {
        Expr::IsNull(Box::new(self.expr.clone())).into()
    }

    fn is_not_null(&self) -> PyExpr {
        Expr::IsNotNull(Box::new(self.expr.clone())).into()
    }

    fn alias(&self, name: &str) -> PyExpr {
        // An alias of an alias has the last name only.
        self.expr.clone().unalias().alias(name).into()
    }

    fn cast(&self, kind: &str, safe: bool) -> PyResult<PyExpr> {
        let kind = parse_type(kind)?;
        let expr = self.expr.clone();
        Ok(if safe { try_cast(expr, kind) } else { cast(expr, kind) }.into())
    }

    fn between(&self, low: &PyExpr, high: &PyExpr) -> PyExpr {
        self.expr.clone().between(low.expr.clone(), high.expr.clone()).into()
    }

    fn in_list(&self, values: Vec<PyExpr>) -> PyExpr {
        self.expr.clone().in_list(values.into_iter().map(|one| one.expr).collect(), false).into()
    }

    fn like(&self, pattern: &str, ignore_case: bool) -> PyExpr {
        let pattern = Box::new(lit(pattern));
        Expr::Like(Like::new(false, Box::new(self.expr.clone()), pattern, None, ignore_case)).into()
    }

    fn sort(&self, ascending: bool, nulls_first: bool) -> PySort {
        PySort { sort: self.expr.clone().sort(ascending, nulls_first) }
    }

    /// An aggregate over the rows for which `predicate` holds.
    fn filter(&self, predicate: &PyExpr) -> PyResult<PyExpr> {
        let (name, inner) = split_alias(&self.expr);
        let Expr::AggregateFunction(mut of) = inner else {
            return Err(PyTypeError::new_err("filter() of an expression is for aggregates, such as col(\"x\").sum()"));
        };
        of.params.filter = Some(Box::new(predicate.expr.clone()));
        Ok(with_alias(Expr::AggregateFunction(of), name).into())
    }

    /// An aggregate or a window function over a window: `frame` is a unit (`rows`, `range`, `groups`) and two bounds,
    /// of which nothing means unbounded, and a negative number rows before.
    #[pyo3(signature = (partition_by, order_by, frame))]
    fn over(
        &self,
        py: Python<'_>,
        partition_by: Vec<PyExpr>,
        order_by: Vec<PySort>,
        frame: Option<(String, Option<i64>, Option<i64>)>,
    ) -> PyResult<PyExpr> {
        let (name, inner) = split_alias(&self.expr);
        let mut function = match inner {
            Expr::WindowFunction(function) => *function,
            Expr::AggregateFunction(of) => {
                let mut function = WindowFunction::new(WindowFunctionDefinition::AggregateUDF(of.func), of.params.args);
                function.params.filter = of.params.filter;
                function.params.distinct = of.params.distinct;
                function.params.null_treatment = of.params.null_treatment;
                function
            }
            _ => {
                return Err(PyTypeError::new_err(
                    "over() is for aggregates and window functions, such as col(\"x\").sum() or row_number()",
                ));
            }
        };
        let ordered = !order_by.is_empty();
        function.params.partition_by = partition_by.into_iter().map(|one| one.expr).collect();
        function.params.order_by = order_by.into_iter().map(|one| one.sort).collect();
        function.params.window_frame = match frame {
            Some((unit, start, end)) => window_frame(&unit, start, end).map_err(|error| from_engine(py, &error))?,
            None => WindowFrame::new(ordered.then_some(false)),
        };
        Ok(with_alias(Expr::WindowFunction(Box::new(function)), name).into())
    }
}

fn split_alias(expr: &Expr) -> (Option<String>, Expr) {
    match expr {
        Expr::Alias(alias) => (Some(alias.name.clone()), alias.expr.as_ref().clone()),
        other => (None, other.clone()),
    }
}

fn with_alias(expr: Expr, name: Option<String>) -> Expr {
    match name {
        Some(name) => expr.alias(name),
        None => expr,
    }
}

fn window_frame(unit: &str, start: Option<i64>, end: Option<i64>) -> Result<WindowFrame> {
    let units = match unit {
        "rows" => WindowFrameUnits::Rows,
        "range" => WindowFrameUnits::Range,
        "groups" => WindowFrameUnits::Groups,
        other => return Err(DataFusionError::Plan(format!("a frame counts rows, range or groups, not `{other}`"))),
    };
    let bound = |at: Option<i64>, open: fn(ScalarValue) -> WindowFrameBound| match at {
        None => open(ScalarValue::UInt64(None)),
        Some(0) => WindowFrameBound::CurrentRow,
        Some(at) if at < 0 => WindowFrameBound::Preceding(ScalarValue::UInt64(Some(at.unsigned_abs()))),
        Some(at) => WindowFrameBound::Following(ScalarValue::UInt64(Some(at.unsigned_abs()))),
    };
    let (start, end) = (bound(start, WindowFrameBound::Preceding), bound(end, WindowFrameBound::Following));
    Ok(WindowFrame::new_bounds(units, start, end))
}

/// For functions of the user's: the call as an expression.
pub(crate) fn user_call(function: datafusion::logical_expr::ScalarUDF, arguments: Vec<PyExpr>) -> PyExpr {
    let arguments = arguments.into_iter().map(|one| one.expr).collect();
    Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(function), arguments)).into()
}
