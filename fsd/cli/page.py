"""The dashboard's page: HTML with inline SVG and no style of its own, so that a strict content security policy holds. Pure."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from fsd.cli.health import CODES, reasons, word
from fsd.cli.status import node_state, period, work_line
from fsd.cli.traffic import EVERY_S, NOTHING, Traffic
from fsd.core.units import format_size
from fsd.protocol.cluster import NodeStatus, SessionStatus, StatusReply
from metadata.metrics import GroupState

CELL, COLUMNS = 12, 64  # of the grid of groups
SHOWN_SESSIONS = 200
WIDE, HIGH = 600, 80  # of the chart


class Look(NamedTuple):
    status: StatusReply
    groups: Sequence[GroupState]
    traffic: Traffic


def page(look: Look) -> str:
    """The whole document."""
    name = escape(look.status.file_system)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>fsd {name}: {word(reasons(look.status))}</title>
<link rel="stylesheet" href="/dashboard.css">
<script src="/dashboard.js" defer></script>
</head>
<body>
<main id="look">
{_head(look.status)}
{_reasons(look.status)}
{_groups(look)}
{_traffic(look.traffic)}
{_nodes(look)}
{_volumes(look.status)}
{_sessions(look.status.sessions)}
</main>
<footer>The same for programs: <a href="/api/status">/api/status</a>, <a href="/metrics">/metrics</a>,
<a href="/readyz?verbose">/readyz?verbose</a></footer>
</body>
</html>
"""


def _head(status: StatusReply) -> str:
    state = word(reasons(status))
    up = period(status.uptime_s)
    return (
        f'<header><h1>fsd <small>{escape(status.file_system)}</small></h1><p id="health" class="{state}">{state}</p>'
        f"<p>version {escape(status.version)}, map epoch {status.map_epoch}, metadata server up for {up}</p></header>"
    )


def _reasons(status: StatusReply) -> str:
    found = reasons(status)
    if not found:
        return "<section><h2>Health</h2><p>All copies are in sync; nothing to do.</p></section>"
    items = "".join(
        f'<details class="{reason.severity}" id="reason-{number}"><summary><b>{reason.code}</b> {escape(reason.text)}</summary>'
        f"<p>{escape(CODES[reason.code].meaning)}</p><p>What to do: {escape(CODES[reason.code].remedy)}</p></details>"
        for number, reason in enumerate(found)
    )
    return f"<section><h2>Health</h2>{items}</section>"


def _groups(look: Look) -> str:
    status = look.status
    cells = "".join(_cell(number, group) for number, group in enumerate(look.groups))
    rows = max(1, -(-len(look.groups) // COLUMNS))
    return (
        f"<section><h2>Placement groups</h2><p>{status.total}: {status.in_sync} in sync, {status.degraded} degraded, "
        f'{status.down} down{escape(work_line(status))}</p><svg class="grid" role="img" aria-label="placement groups" '
        f'viewBox="0 0 {COLUMNS * CELL} {rows * CELL}">{cells}</svg></section>'
    )


def _cell(number: int, group: GroupState) -> str:
    row, column = divmod(number, COLUMNS)
    lead = f"primary node {group.primary}" if group.primary is not None else "no primary"
    return (
        f'<rect class="{group.state}" x="{column * CELL}" y="{row * CELL}" width="{CELL - 2}" height="{CELL - 2}">'
        f"<title>group {group.pg}: {group.state}, {lead}, {group.copies} copies</title></rect>"
    )


def _traffic(traffic: Traffic) -> str:
    now = traffic.history[-1] if traffic.history else NOTHING
    top = max([1.0, *(max(rates) for rates in traffic.history)])
    lines = "".join(_line(name, [getattr(rates, name) for rates in traffic.history], top) for name in now._fields)
    minutes = (traffic.history.maxlen or 0) * EVERY_S / 60
    return (
        f'<section><h2>Traffic</h2><p><span class="read">read {_rate(now.read)}</span>, '
        f'<span class="written">written {_rate(now.written)}</span> (every copy counts), '
        f'<span class="resynced">copied to other nodes {_rate(now.resynced)}</span>; the last {minutes:.0f} minutes, '
        f'top {_rate(top)}</p><svg class="chart" role="img" aria-label="traffic" viewBox="0 0 {WIDE} {HIGH}" '
        f'preserveAspectRatio="none">{lines}</svg></section>'
    )


def _line(name: str, values: Sequence[float], top: float) -> str:
    step = WIDE / 149
    first = WIDE - step * (len(values) - 1)
    points = " ".join(
        f"{first + step * at:.1f},{HIGH - 2 - (HIGH - 4) * value / top:.1f}" for at, value in enumerate(values)
    )
    return f'<polyline class="{name}" points="{points}"/>'


def _rate(value: float) -> str:
    return f"{format_size(int(value))}/s"


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """`rows` are HTML already."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f"<section><h2>{escape(title)}</h2>{note}<table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></section>"
    )


def _bar(used: int, whole: int) -> str:
    percent = 100 * min(1.0, used / whole) if whole > 0 else 0.0
    kind = "down" if percent > 95 else "degraded" if percent > 90 else "in_sync"
    return (
        f'<svg class="bar" role="img" aria-label="{percent:.0f} percent" viewBox="0 0 100 8" preserveAspectRatio="none">'
        f'<rect class="rest" width="100" height="8"/><rect class="{kind}" width="{percent:.1f}" height="8"/></svg>'
    )


def _nodes(look: Look) -> str:
    rows = [_node(entry, look.traffic) for entry in look.status.nodes]
    heads = ("Node", "State", "Zone", "Address", "Disk", "", "Chunks", "Read", "Written", "CPU", "Rot", "Heartbeat")
    return _table("Nodes", heads, rows)


def _node(entry: NodeStatus, traffic: Traffic) -> list[str]:
    node, load = entry.node, entry.load
    rates = traffic.nodes.get(node.node, NOTHING)
    state = node_state(node)
    used = max(0, load.total_bytes - load.free_bytes)
    heard = "never" if entry.last_heartbeat_s < 0 else f"{entry.last_heartbeat_s:.1f} s ago"
    return [
        str(node.node),
        f'<span class="state {state}">{state}</span>',
        escape(node.zone),
        escape(node.address),
        _bar(used, load.total_bytes),
        f"{format_size(load.free_bytes)} of {format_size(load.total_bytes)} free",
        str(load.chunks),
        _rate(rates.read),
        _rate(rates.written),
        f"{load.cpu_percent:.0f} %",
        str(load.rotten),
        heard,
    ]


def _volumes(status: StatusReply) -> str:
    rows = [
        [
            escape(volume.name),
            f"{volume.replicas} (at least {volume.min_replicas})",
            format_size(volume.used_bytes),
            f"{_bar(volume.used_bytes, volume.quota_bytes)} of {format_size(volume.quota_bytes)}"
            if volume.quota_bytes
            else "no bound",
            str(volume.used_inodes),
        ]
        for volume in status.volumes
    ]
    return _table("Volumes", ("Name", "Copies", "Used", "Quota", "Inodes"), rows)


def _sessions(sessions: Sequence[SessionStatus]) -> str:
    rows = [
        [
            str(session.session),
            escape(session.client),
            escape(session.volume),
            escape(session.address),
            str(session.leases),
            str(session.locks),
            f"{session.idle_s:.1f} s ago",
        ]
        for session in sessions[:SHOWN_SESSIONS]
    ]
    more = len(sessions) - len(rows)
    note = f"<p>{more} more are not shown: fsd sessions</p>" if more else ""
    heads = ("Session", "Client", "Volume", "Address", "Leases", "Locks", "Heard")
    return _table(f"Sessions: {len(sessions)}", heads, rows, note)
