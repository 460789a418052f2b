-- name: my flow
-- param month int99 = 1
-- param day int8 = 300
-- param 2nd int8
-- var dir
-- var dir string
-- var dir string
CREATE VIEW s AS SELECT $month;
COPY s TO 'out/${vars.dri}.csv';
