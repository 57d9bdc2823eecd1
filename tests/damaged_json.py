"""Contents that are not a JSON object, for every reader of JSON."""

DAMAGED_JSON = {
    "empty": b"",
    "truncated": b'{"a": ',
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep in an object": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "huge integer": b'{"a": ' + b"7" * 5_000 + b"}",
    "list": b"[]",
    "null": b"null",
    "zero bytes": bytes(1000),
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
}
