-- Loads :rows rows, indexes and changes them, and prints checks and checksums of everything.
PRAGMA page_size = 4096;
PRAGMA cache_size = -131072;
PRAGMA journal_mode = MEMORY;
PRAGMA synchronous = OFF;
CREATE TABLE event (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, amount INTEGER NOT NULL, note TEXT, body BLOB);
BEGIN;
INSERT INTO event
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :rows)
SELECT i, 'kind-' || (i * 7919 % 101), (i * 2654435761) % 1000003, printf('%08x-%d', i * 40503 % 65536, i),
       CASE i % 5 WHEN 0 THEN zeroblob(i % 97) ELSE CAST(printf('%.*c', i % 61, char(65 + i % 26)) AS BLOB) END
FROM n;
COMMIT;
CREATE INDEX event_by_kind ON event (kind, amount);
CREATE INDEX event_by_note ON event (note);
PRAGMA integrity_check;
SELECT count(*), sum(amount), sum(length(note)), sum(length(body)) FROM event;
SELECT kind, count(*), sum(amount), min(note), max(note) FROM event GROUP BY kind ORDER BY kind LIMIT 20;
BEGIN;
UPDATE event SET amount = amount + 1, note = note || 'x' WHERE id % 3 = 0;
DELETE FROM event WHERE id % 17 = 0;
INSERT INTO event SELECT id + 1000000, kind, amount * 2, note, body FROM event WHERE id % 11 = 0;
COMMIT;
BEGIN;
DELETE FROM event WHERE id % 2 = 0;
ROLLBACK;
PRAGMA integrity_check;
SELECT count(*), sum(amount), sum(length(note)), sum(length(body)) FROM event;
SELECT sum(a.amount * b.amount % 1000) FROM event a JOIN event b ON a.id = b.id - 1000000;
SELECT count(*), sum(x) FROM (SELECT DISTINCT amount % 50021 AS x FROM event);
SELECT id, note FROM event ORDER BY substr(note, 5), id LIMIT 5;
.sha3sum
