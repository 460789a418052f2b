//! Says the types of list parameters in SQL: `unnest($list)` is planned before values are filled in.

use std::collections::HashMap;
use std::ops::ControlFlow;

use arrow::datatypes::DataType;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Expr as SqlExpr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, Ident,
    ObjectName, Value as SqlValue, visit_expressions_mut,
};

use super::bind_values::Bound;

/// `$list` becomes `arrow_cast($list, 'its type')`; the value stays a parameter.
pub(super) fn with_typed_lists(mut statement: Statement, bound: &Bound) -> Statement {
    let lists: HashMap<String, String> = bound
        .scalars
        .iter()
        .filter(|(_, value)| value.data_type().is_nested())
        .map(|(name, value)| (format!("${name}"), value.data_type().to_string()))
        .filter(|(_, kind)| kind.parse::<DataType>().is_ok())
        .collect();
    let Statement::Statement(inner) = &mut statement else { return statement };
    if lists.is_empty() {
        return statement;
    }
    let _: ControlFlow<()> = visit_expressions_mut(inner.as_mut(), |expression| {
        if let SqlExpr::Value(value) = expression
            && let SqlValue::Placeholder(name) = &value.value
            && let Some(kind) = lists.get(name)
        {
            *expression = typed(expression.clone(), kind);
        }
        ControlFlow::Continue(())
    });
    statement
}

/// `arrow_cast(value, 'kind')`
fn typed(value: SqlExpr, kind: &str) -> SqlExpr {
    let argument = |value| FunctionArg::Unnamed(FunctionArgExpr::Expr(value));
    let kind = SqlExpr::Value(SqlValue::SingleQuotedString(kind.to_owned()).with_empty_span());
    SqlExpr::Function(Function {
        name: ObjectName::from(vec![Ident::new("arrow_cast")]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: vec![argument(value), argument(kind)],
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}
