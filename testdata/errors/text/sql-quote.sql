CREATE VIEW s AS
SELECT 'größe, carrier
FROM flights;
