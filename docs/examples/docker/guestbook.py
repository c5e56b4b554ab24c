"""A small web application for the examples: what is posted to it is a row in an SQLite database, GET tells all rows.

    python3 guestbook.py DIRECTORY

A row that was answered is synced (`synchronous=FULL`), so it is there whatever dies.
"""

import os
import signal
import sqlite3
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LONGEST = 1000
PATIENCE_S = 30.0  # for another writer's lock


def opened(path: str) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=PATIENCE_S)
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE IF NOT EXISTS guests (number INTEGER PRIMARY KEY, text TEXT NOT NULL)")
    return database


class Guestbook(BaseHTTPRequestHandler):
    path_of_database = ""

    def do_GET(self) -> None:
        database = opened(self.path_of_database)
        try:
            rows = database.execute("SELECT number, text FROM guests ORDER BY number").fetchall()
        finally:
            database.close()
        self.answer(200, "".join(f"{number} {text}\n" for number, text in rows))

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LONGEST:
            self.answer(400, f"a guest leaves at most {LONGEST} bytes\n")
            return
        text = " ".join(self.rfile.read(int(length)).decode(errors="replace").split())
        database = opened(self.path_of_database)
        try:
            with database:
                number = database.execute("INSERT INTO guests (text) VALUES (?)", (text,)).lastrowid
        finally:
            database.close()
        self.answer(201, f"{number}\n")

    def answer(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as process 1 of a container nobody does it for us
    directory = sys.argv[1]
    os.makedirs(directory, exist_ok=True)
    Guestbook.path_of_database = os.path.join(directory, "guests.db")
    opened(Guestbook.path_of_database).close()
    ThreadingHTTPServer(("", 8080), Guestbook).serve_forever()


if __name__ == "__main__":
    main()
