//! Tests of the operator.
