//! Writes expressions as CUDA C. Every node becomes one or two statements that define a value `vN` and, where it can be
//! null, a flag `nN`; operands that could fail on a row nobody asks about are put behind an `if`. The functions called
//! are those of `kernels/common.cuh`.
use std::collections::HashMap;
use std::fmt::Write as _;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{
    DataType, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, Schema, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};

use super::{BinaryOp, GpuExpr, Literal, Physical};
use crate::batch::DeviceBatch;
use crate::error::{Error, Result};

/// The name of a value in the kernel, and of its "is valid" flag (`None`: always valid).
#[derive(Debug, Clone)]
pub(crate) struct Value {
    pub(crate) value: String,
    pub(crate) valid: Option<String>,
    pub(crate) physical: Physical,
}

impl Value {
    /// The validity as an expression of CUDA C.
    pub(crate) fn valid_text(&self) -> &str {
        self.valid.as_deref().unwrap_or("true")
    }
}

/// Writes the statements of one kernel.
pub(crate) struct Writer<'a> {
    schema: &'a Schema,
    text: String,
    next: usize,
    loaded: HashMap<usize, Value>,
    columns: Vec<usize>,
    constants: Vec<u64>,
}

/// What the kernel's `Inputs` struct holds: pointers of the columns it reads, then its constants.
#[derive(Debug, Clone)]
pub(crate) struct Inputs {
    /// The struct's declaration in CUDA C.
    pub(crate) declaration: String,
    columns: Vec<usize>,
    constants: Vec<u64>,
}

impl Inputs {
    /// The struct's words for a batch.
    pub(crate) fn words(&self, batch: &DeviceBatch) -> Result<Vec<u64>> {
        let mut words = Vec::with_capacity(self.columns.len() * 2 + self.constants.len() + 1);
        for &at in &self.columns {
            let column = batch
                .columns()
                .get(at)
                .ok_or_else(|| Error::Invalid(format!("the batch on the device has no column {at}")))?;
            words.push(column.values.pointer());
            words.push(column.validity.as_ref().map_or(0, |bits| bits.pointer()));
        }
        words.extend_from_slice(&self.constants);
        // A struct of CUDA C is never empty.
        words.push(0);
        Ok(words)
    }

    /// The bytes per row that the kernel reads, bitmaps included.
    pub(crate) fn row_bytes(&self, schema: &Schema) -> Result<f64> {
        let mut bytes = 0.0;
        for &at in &self.columns {
            let field = schema.field(at);
            bytes += match Physical::try_from(field.data_type())? {
                Physical::Bool => 0.125,
                other => other.bytes() as f64,
            };
            bytes += if field.is_nullable() { 0.125 } else { 0.0 };
        }
        Ok(bytes)
    }
}

impl<'a> Writer<'a> {
    pub(crate) fn new(schema: &'a Schema) -> Self {
        Self {
            schema,
            text: String::new(),
            next: 0,
            loaded: HashMap::new(),
            columns: Vec::new(),
            constants: Vec::new(),
        }
    }

    /// The statements written since the last call.
    pub(crate) fn take(&mut self) -> String {
        std::mem::take(&mut self.text)
    }

    /// Forgets which columns were loaded: the next statements stand in another scope.
    pub(crate) fn leave_scope(&mut self) {
        self.loaded.clear();
    }

    /// The struct for everything written.
    pub(crate) fn inputs(&self) -> Result<Inputs> {
        // The struct is an argument of the kernel, and those share 4 KiB.
        if self.columns.len() * 2 + self.constants.len() > 448 {
            return Err(Error::Unsupported("an expression with hundreds of columns and constants".into()));
        }
        let mut declaration = String::from("struct Inputs {\n");
        for &at in &self.columns {
            let physical = Physical::try_from(self.schema.field(at).data_type())?;
            let element = if physical == Physical::Bool { "u32" } else { physical.cuda() };
            writeln!(declaration, "    const {element}* c{at}; const u32* m{at};").map_err(text_error)?;
        }
        for index in 0..self.constants.len() {
            writeln!(declaration, "    u64 k{index};").map_err(text_error)?;
        }
        declaration.push_str("    u64 end;\n};\n");
        Ok(Inputs { declaration, columns: self.columns.clone(), constants: self.constants.clone() })
    }

    fn line(&mut self, text: &str) {
        self.text.push_str("        ");
        self.text.push_str(text);
        self.text.push('\n');
    }

    fn fresh(&mut self) -> usize {
        self.next += 1;
        self.next
    }

    /// Defines a value from an expression of CUDA C.
    fn define(&mut self, physical: Physical, value: &str, valid: Option<String>) -> Value {
        let id = self.fresh();
        let kind = physical.cuda();
        self.line(&format!("const {kind} v{id} = {value};"));
        let valid = valid.map(|valid| {
            if valid.chars().all(|c| c.is_ascii_alphanumeric()) {
                return valid;
            }
            self.line(&format!("const bool n{id} = {valid};"));
            format!("n{id}")
        });
        Value { value: format!("v{id}"), valid, physical }
    }

    fn constant(&mut self, physical: Physical, low: u64, high: u64) -> String {
        let at = self.constants.len();
        self.constants.extend([low, high]);
        format!("Constant<{}>::get(in.k{at}, in.k{})", physical.cuda(), at + 1)
    }

    fn decimal_constant(&mut self, value: i128) -> String {
        let (low, high) = words_of(value);
        self.constant(Physical::I128, low, high)
    }

    /// 10^exponent as a decimal constant.
    fn power_of_ten(&mut self, exponent: i32) -> Result<String> {
        let power = u32::try_from(exponent).ok().and_then(|e| 10_i128.checked_pow(e));
        let power = power.ok_or_else(|| Error::Unsupported(format!("a decimal scaled by 10^{exponent}")))?;
        Ok(self.decimal_constant(power))
    }

    /// Writes `expr` for the row named `row`; the value is right wherever the flag is true.
    pub(crate) fn write(&mut self, expr: &GpuExpr) -> Result<Value> {
        match expr {
            GpuExpr::Column(at) => self.load(*at),
            GpuExpr::Literal(literal) => self.write_literal(literal),
            GpuExpr::Binary { op, left, right } if op.is_logical() => self.write_logical(*op, left, right),
            GpuExpr::Binary { op, left, right } => self.write_binary(*op, left, right),
            GpuExpr::Not(input) => {
                let input = self.write(input)?;
                Ok(self.define(Physical::Bool, &format!("!{}", input.value), input.valid))
            }
            GpuExpr::Negate(input) => {
                let input = self.write(input)?;
                let text = match input.physical {
                    Physical::F32 | Physical::F64 => format!("-{}", input.value),
                    Physical::I128 => format!("decimal_sub(0, {}, {}, fault)", input.value, input.valid_text()),
                    other => format!("sub_wrapping<{}>(0, {})", other.cuda(), input.value),
                };
                Ok(self.define(input.physical, &text, input.valid))
            }
            GpuExpr::IsNull(input) => {
                let input = self.write(input)?;
                Ok(self.define(Physical::Bool, &format!("!{}", input.valid_text()), None))
            }
            GpuExpr::IsNotNull(input) => {
                let input = self.write(input)?;
                let text = input.valid_text().to_owned();
                Ok(self.define(Physical::Bool, &text, None))
            }
            GpuExpr::Cast { input, to } => self.write_cast(input, to),
            GpuExpr::Case { branches, otherwise } => {
                let physical = Physical::try_from(&expr.data_type(self.schema)?)?;
                self.write_case(physical, branches, otherwise.as_deref())
            }
        }
    }

    fn load(&mut self, at: usize) -> Result<Value> {
        if let Some(value) = self.loaded.get(&at) {
            return Ok(value.clone());
        }
        let field = self.schema.fields().get(at).ok_or_else(|| Error::Invalid(format!("no column {at}")))?;
        let physical = Physical::try_from(field.data_type())?;
        if !self.columns.contains(&at) {
            self.columns.push(at);
        }
        let text = match physical {
            Physical::Bool => format!("bit_at(in.c{at}, row)"),
            _ => format!("in.c{at}[row]"),
        };
        let valid = field.is_nullable().then(|| format!("valid_at(in.m{at}, row)"));
        let value = self.define(physical, &text, valid);
        self.loaded.insert(at, value.clone());
        Ok(value)
    }

    fn write_literal(&mut self, literal: &Literal) -> Result<Value> {
        let array = literal.array();
        let physical = Physical::try_from(array.data_type())?;
        if array.is_null(0) {
            return Ok(self.define(physical, &format!("({})0", physical.cuda()), Some("false".into())));
        }
        let (low, high) = literal_words(array.as_ref())?;
        let text = self.constant(physical, low, high);
        Ok(self.define(physical, &text, None))
    }

    fn write_binary(&mut self, op: BinaryOp, left: &GpuExpr, right: &GpuExpr) -> Result<Value> {
        let types = (left.data_type(self.schema)?, right.data_type(self.schema)?);
        let (l, r) = (self.write(left)?, self.write(right)?);
        let valid = both(&l.valid, &r.valid);
        let (a, b) = (&l.value, &r.value);
        let kind = l.physical.cuda();
        let comparison = match op {
            BinaryOp::Equal => Some(format!("same({a}, {b})")),
            BinaryOp::NotEqual => Some(format!("!same({a}, {b})")),
            BinaryOp::Less => Some(format!("less({a}, {b})")),
            BinaryOp::LessOrEqual => Some(format!("!less({b}, {a})")),
            BinaryOp::Greater => Some(format!("less({b}, {a})")),
            BinaryOp::GreaterOrEqual => Some(format!("!less({a}, {b})")),
            _ => None,
        };
        if let Some(text) = comparison {
            return Ok(self.define(Physical::Bool, &text, valid));
        }
        if let (DataType::Decimal128(_, s1), DataType::Decimal128(_, s2)) = types {
            return self.write_decimal(op, (l, i32::from(s1)), (r, i32::from(s2)), valid);
        }
        let ok = valid.clone().unwrap_or_else(|| "true".into());
        let text = match (op, l.physical) {
            (BinaryOp::Add, p) if p.is_float() => format!("settle({a} + {b}, {a}, {b})"),
            (BinaryOp::Subtract, p) if p.is_float() => format!("settle({a} - {b}, {a}, {b})"),
            (BinaryOp::Multiply, p) if p.is_float() => format!("settle({a} * {b}, {a}, {b})"),
            (BinaryOp::Divide, p) if p.is_float() => format!("settle({a} / {b}, {a}, {b})"),
            (BinaryOp::Remainder, Physical::F32) => format!("settle(fmodf({a}, {b}), {a}, {b})"),
            (BinaryOp::Remainder, Physical::F64) => format!("settle(fmod({a}, {b}), {a}, {b})"),
            (BinaryOp::Add, _) => format!("add_wrapping<{kind}>({a}, {b})"),
            (BinaryOp::Subtract, _) => format!("sub_wrapping<{kind}>({a}, {b})"),
            (BinaryOp::Multiply, _) => format!("mul_wrapping<{kind}>({a}, {b})"),
            (BinaryOp::Divide, _) => format!("div_checked<{kind}>({a}, {b}, {ok}, fault)"),
            _ => format!("rem_checked<{kind}>({a}, {b}, {ok}, fault)"),
        };
        Ok(self.define(l.physical, &text, valid))
    }

    fn write_decimal(
        &mut self,
        op: BinaryOp,
        (l, s1): (Value, i32),
        (r, s2): (Value, i32),
        valid: Option<String>,
    ) -> Result<Value> {
        let ok = valid.clone().unwrap_or_else(|| "true".into());
        let scale = s1.max(s2);
        let (left_power, right_power) = match op {
            BinaryOp::Multiply => (0, 0),
            BinaryOp::Divide => {
                let power = (s1 + 4).min(38) - s1 + s2;
                (power.max(0), (-power).max(0))
            }
            _ => (scale - s1, scale - s2),
        };
        let a = self.scaled(&l.value, left_power, &ok)?;
        let b = self.scaled(&r.value, right_power, &ok)?;
        let name = match op {
            BinaryOp::Add => "decimal_add",
            BinaryOp::Subtract => "decimal_sub",
            BinaryOp::Multiply => "decimal_mul",
            BinaryOp::Divide => "decimal_div",
            _ => "decimal_rem",
        };
        Ok(self.define(Physical::I128, &format!("{name}({a}, {b}, {ok}, fault)"), valid))
    }

    fn scaled(&mut self, value: &str, power: i32, ok: &str) -> Result<String> {
        if power == 0 {
            return Ok(value.to_owned());
        }
        let factor = self.power_of_ten(power)?;
        Ok(self.define(Physical::I128, &format!("decimal_mul({value}, {factor}, {ok}, fault)"), None).value)
    }

    /// Kleene's AND and OR: a left side that decides the outcome hides nulls and failures of the right.
    fn write_logical(&mut self, op: BinaryOp, left: &GpuExpr, right: &GpuExpr) -> Result<Value> {
        let l = self.write(left)?;
        // The value that decides: false for AND, true for OR.
        let (decides, join) = if op == BinaryOp::And { ("!", "&&") } else { ("", "||") };
        let lazy = right.can_fail(self.schema)?;
        let id = self.fresh();
        let decided = format!("({} && {decides}{})", l.valid_text(), l.value);
        if lazy {
            let outside = self.loaded.clone();
            self.line(&format!("bool v{id} = {}, n{id} = {};", l.value, l.valid_text()));
            self.line(&format!("if (!{decided}) {{"));
            let r = self.write(right)?;
            let right_decided = format!("({} && {decides}{})", r.valid_text(), r.value);
            self.line(&format!(
                "n{id} = ({} && {}) || {right_decided}; v{id} = {right_decided} ? {} : ({} {join} {});",
                l.valid_text(),
                r.valid_text(),
                r.value,
                l.value,
                r.value
            ));
            self.line("}");
            self.loaded = outside;
            return Ok(Value { value: format!("v{id}"), valid: Some(format!("n{id}")), physical: Physical::Bool });
        }
        let r = self.write(right)?;
        if l.valid.is_none() && r.valid.is_none() {
            return Ok(self.define(Physical::Bool, &format!("{} {join} {}", l.value, r.value), None));
        }
        let right_decided = format!("({} && {decides}{})", r.valid_text(), r.value);
        let outcome = if op == BinaryOp::And { "false" } else { "true" };
        let valid = format!("({} && {}) || {decided} || {right_decided}", l.valid_text(), r.valid_text());
        let text = format!("({decided} || {right_decided}) ? {outcome} : ({} {join} {})", l.value, r.value);
        Ok(self.define(Physical::Bool, &text, Some(valid)))
    }

    fn write_case(
        &mut self,
        physical: Physical,
        branches: &[(GpuExpr, GpuExpr)],
        otherwise: Option<&GpuExpr>,
    ) -> Result<Value> {
        let id = self.fresh();
        let kind = physical.cuda();
        let outside = self.loaded.clone();
        self.line(&format!("{kind} v{id} = 0; bool n{id} = false;"));
        for (condition, value) in branches {
            let condition = self.write(condition)?;
            self.line(&format!("if ({} && {}) {{", condition.valid_text(), condition.value));
            let inside = self.loaded.clone();
            let value = self.write(value)?;
            self.line(&format!("v{id} = {}; n{id} = {};", value.value, value.valid_text()));
            self.line("} else {");
            self.loaded = inside;
        }
        if let Some(otherwise) = otherwise {
            let value = self.write(otherwise)?;
            self.line(&format!("v{id} = {}; n{id} = {};", value.value, value.valid_text()));
        }
        self.line(&"}".repeat(branches.len()));
        self.loaded = outside;
        Ok(Value { value: format!("v{id}"), valid: Some(format!("n{id}")), physical })
    }

    fn write_cast(&mut self, input: &GpuExpr, to: &DataType) -> Result<Value> {
        let from = input.data_type(self.schema)?;
        let target = Physical::try_from(to)?;
        let input = self.write(input)?;
        if from == *to {
            return Ok(input);
        }
        let ok = input.valid_text().to_owned();
        let value = &input.value;
        let kind = target.cuda();
        let text = match (&from, to) {
            (_, DataType::Decimal128(precision, scale)) => {
                let old_scale = if let DataType::Decimal128(_, scale) = from { i32::from(scale) } else { 0 };
                let wide = self.define(Physical::I128, &format!("(i128){value}"), None).value;
                let scaled = self.scaled(&wide, i32::from(*scale) - old_scale, &ok)?;
                let bound = self.power_of_ten(i32::from(*precision))?;
                format!("fit_decimal({scaled}, {bound}, {ok}, fault)")
            }
            (DataType::Decimal128(_, scale), DataType::Float64) => {
                let power = 10_f64.powi(i32::from(*scale));
                let power = self.constant(Physical::F64, power.to_bits(), 0);
                format!("(f64){value} / {power}")
            }
            _ if target.is_float() => format!("({kind}){value}"),
            _ if input.physical.is_float() => {
                let (low, high) = integer_bounds(target);
                let low = self.constant(Physical::F64, low.to_bits(), 0);
                let high = self.constant(Physical::F64, high.to_bits(), 0);
                format!("cast_float<{kind}>((f64){value}, {low}, {high}, {ok}, fault)")
            }
            _ => format!("cast_integer<{kind}>({value}, {ok}, fault)"),
        };
        Ok(self.define(target, &text, input.valid))
    }
}

/// The doubles next below and at or above an integer type: what lies strictly between can be cast.
fn integer_bounds(target: Physical) -> (f64, f64) {
    match target {
        Physical::I8 => (-129.0, 128.0),
        Physical::I16 => (-32769.0, 32768.0),
        Physical::I32 => (-2_147_483_649.0, 2_147_483_648.0),
        // There is no double between this one and the smallest integer.
        Physical::I64 => (-9_223_372_036_854_777_856.0, 9_223_372_036_854_775_808.0),
        Physical::U8 => (-1.0, 256.0),
        Physical::U16 => (-1.0, 65536.0),
        Physical::U32 => (-1.0, 4_294_967_296.0),
        _ => (-1.0, 18_446_744_073_709_551_616.0),
    }
}

fn both(left: &Option<String>, right: &Option<String>) -> Option<String> {
    match (left, right) {
        (None, None) => None,
        (Some(one), None) | (None, Some(one)) => Some(one.clone()),
        (Some(a), Some(b)) if a == b => Some(a.clone()),
        (Some(a), Some(b)) => Some(format!("{a} && {b}")),
    }
}

fn words_of(value: i128) -> (u64, u64) {
    (value as u64, (value >> 64) as u64)
}

/// The two words of a literal, sign-extended.
fn literal_words(array: &dyn Array) -> Result<(u64, u64)> {
    let unsupported = || Error::Unsupported(format!("a literal of type {}", array.data_type()));
    Ok(match Physical::try_from(array.data_type())? {
        Physical::Bool => (u64::from(array.as_boolean().value(0)), 0),
        Physical::F32 => (u64::from(array.as_primitive::<Float32Type>().value(0).to_bits()), 0),
        Physical::F64 => (array.as_primitive::<Float64Type>().value(0).to_bits(), 0),
        Physical::I128 => words_of(array.as_primitive::<Decimal128Type>().value(0)),
        Physical::I8 => words_of(i128::from(array.as_primitive::<Int8Type>().value(0))),
        Physical::I16 => words_of(i128::from(array.as_primitive::<Int16Type>().value(0))),
        Physical::U8 => words_of(i128::from(array.as_primitive::<UInt8Type>().value(0))),
        Physical::U16 => words_of(i128::from(array.as_primitive::<UInt16Type>().value(0))),
        Physical::U32 => words_of(i128::from(array.as_primitive::<UInt32Type>().value(0))),
        Physical::U64 => words_of(i128::from(array.as_primitive::<UInt64Type>().value(0))),
        // Dates, times and timestamps are integers underneath.
        Physical::I32 => {
            let plain = arrow::compute::cast(array, &DataType::Int32)?;
            words_of(i128::from(plain.as_primitive::<Int32Type>().value(0)))
        }
        Physical::I64 => {
            let data = array.to_data().into_builder().data_type(DataType::Int64).build().map_err(|_| unsupported())?;
            let plain = arrow::array::make_array(data);
            words_of(i128::from(plain.as_primitive::<Int64Type>().value(0)))
        }
    })
}

fn text_error(_: std::fmt::Error) -> Error {
    Error::Invalid("a kernel's text could not be written".into())
}
