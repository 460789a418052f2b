-- The workflow of flights.yaml as an SQL file: external tables are sources, views are steps, COPY makes sinks.
--
--     rowmill run flights.sql
--     rowmill run flights.sql --set first_month=6 --set last_month=8
--
-- Paths are relative to this file's folder.

-- First and last month that count, 1 to 12; the fewest flights of a group in the reports; and the minutes of arrival
-- delay from which a flight counts as late.
-- param first_month int32 = 1
-- param last_month int32 = 12
-- param min_flights int64 = 100
-- param late_after int32 = 15

CREATE EXTERNAL TABLE flights STORED AS PARQUET LOCATION 'flights.parquet';
CREATE EXTERNAL TABLE weather STORED AS PARQUET LOCATION 'weather.parquet';
CREATE EXTERNAL TABLE planes STORED AS CSV LOCATION 'planes.csv' OPTIONS ('format.has_header' 'true');
CREATE EXTERNAL TABLE airlines STORED AS CSV LOCATION 'airlines.csv' OPTIONS ('format.has_header' 'true');
CREATE EXTERNAL TABLE airports STORED AS CSV LOCATION 'airports.csv' OPTIONS ('format.has_header' 'true');

-- A cancelled flight has no departure. A diverted one left, but has no arrival delay. Clock times are written as
-- hours * 100 + minutes, and midnight sometimes as 2400.
CREATE VIEW departures AS
SELECT
  make_date(year, month, day) AS service_date,
  month,
  hour,
  time_hour,
  trim(carrier) AS carrier,
  flight,
  nullif(trim(tailnum), '') AS tailnum,
  origin,
  dest,
  distance,
  CASE
    WHEN dep_time IS NULL THEN 'cancelled'
    WHEN arr_delay IS NULL THEN 'diverted'
    ELSE 'arrived'
  END AS state,
  (dep_time % 2400) / 100 * 60 + dep_time % 100 AS dep_minute,
  dep_delay,
  arr_delay
FROM flights
WHERE month BETWEEN $first_month AND $last_month;

-- The registry names one maker in several ways, and has no year of manufacture for some planes.
CREATE VIEW fleet AS
SELECT
  tailnum,
  CASE
    WHEN manufacturer LIKE 'AIRBUS%' THEN 'AIRBUS'
    WHEN manufacturer LIKE 'MCDONNELL%' THEN 'MCDONNELL DOUGLAS'
    WHEN manufacturer LIKE 'BOMBARDIER%' OR manufacturer = 'CANADAIR' THEN 'BOMBARDIER'
    ELSE manufacturer
  END AS maker,
  model,
  seats,
  CASE WHEN year BETWEEN 1950 AND 2013 THEN 2013 - year END AS age
FROM planes;

-- A gust is measured only when it is worth a note: none means the wind itself. Weather words follow what an airport
-- does about it: low visibility and snow slow the runways, wind closes some of them.
CREATE VIEW conditions AS
SELECT
  origin,
  time_hour,
  temp,
  visib,
  coalesce(wind_gust, wind_speed) AS gust,
  CASE
    WHEN precip > 0 AND temp <= 32 THEN 'snow or ice'
    WHEN visib < 1 THEN 'fog'
    WHEN precip >= 0.1 THEN 'heavy rain'
    WHEN precip > 0 THEN 'rain'
    WHEN coalesce(wind_gust, wind_speed) >= 30 THEN 'windy'
    WHEN visib < 5 THEN 'haze'
    ELSE 'fair'
  END AS weather
FROM weather;

-- Every flight is kept: a tail number outside the registry, an airport outside the list and an hour without
-- weather leave nulls. This step has four consumers and runs once.
CREATE VIEW enriched AS
SELECT
  d.service_date,
  d.month,
  d.hour,
  d.carrier,
  coalesce(a.name, 'unknown airline ' || d.carrier) AS airline,
  d.flight,
  d.tailnum,
  f.maker,
  f.model,
  f.seats,
  f.age,
  d.origin,
  d.dest,
  p.name AS dest_name,
  d.distance,
  d.state,
  d.dep_minute,
  d.dep_delay,
  d.arr_delay,
  coalesce(d.arr_delay >= $late_after, false) AS late,
  coalesce(c.weather, 'not recorded') AS weather,
  c.temp,
  c.visib,
  c.gust
FROM departures d
LEFT JOIN airlines a ON a.carrier = d.carrier
LEFT JOIN fleet f ON f.tailnum = d.tailnum
LEFT JOIN airports p ON p.faa = d.dest
LEFT JOIN conditions c ON c.origin = d.origin AND c.time_hour = d.time_hour;

-- Airlines, the least punctual first.
CREATE VIEW worst_carriers AS
SELECT
  carrier,
  airline,
  count(*) AS flights,
  sum(CASE WHEN state = 'cancelled' THEN 1 ELSE 0 END) AS cancelled,
  sum(CASE WHEN late THEN 1 ELSE 0 END) AS late,
  round(100.0 * sum(CASE WHEN late THEN 1 ELSE 0 END)
    / nullif(sum(CASE WHEN state = 'arrived' THEN 1 ELSE 0 END), 0), 2) AS late_percent,
  round(avg(arr_delay), 2) AS mean_arr_delay,
  max(arr_delay) AS worst_arr_delay,
  round(avg(age), 1) AS mean_plane_age
FROM enriched
GROUP BY carrier, airline
HAVING count(*) >= $min_flights
ORDER BY late_percent DESC, carrier;

-- Delays by origin and scheduled hour of departure.
CREATE VIEW delays_by_hour AS
SELECT
  origin,
  hour,
  count(*) AS flights,
  round(avg(dep_delay), 2) AS mean_dep_delay,
  round(median(CAST(dep_delay AS double)), 1) AS median_dep_delay,
  round(100.0 * sum(CASE WHEN state = 'cancelled' THEN 1 ELSE 0 END) / count(*), 2) AS cancelled_percent
FROM enriched
GROUP BY origin, hour
HAVING count(*) >= $min_flights
ORDER BY origin, hour;

-- Against fair weather at the same airport: airports differ more than weathers do.
CREATE VIEW delays_by_weather AS
WITH by_weather AS (
  SELECT
    origin,
    weather,
    count(*) AS flights,
    avg(dep_delay) AS mean_dep_delay,
    100.0 * sum(CASE WHEN state = 'cancelled' THEN 1 ELSE 0 END) / count(*) AS cancelled_percent
  FROM enriched
  GROUP BY origin, weather
)
SELECT
  w.origin,
  w.weather,
  w.flights,
  round(w.mean_dep_delay, 2) AS mean_dep_delay,
  round(w.mean_dep_delay - fair.mean_dep_delay, 2) AS over_fair,
  round(w.cancelled_percent, 2) AS cancelled_percent
FROM by_weather w
JOIN by_weather fair ON fair.origin = w.origin AND fair.weather = 'fair'
WHERE w.flights >= $min_flights
ORDER BY w.origin, over_fair DESC, w.weather;

COPY worst_carriers TO 'out/sql/worst_carriers.csv';
COPY delays_by_hour TO 'out/sql/delays_by_hour.parquet';
COPY delays_by_weather TO 'out/sql/delays_by_weather.csv';
COPY enriched TO 'out/sql/flights/' STORED AS PARQUET PARTITIONED BY (month);
