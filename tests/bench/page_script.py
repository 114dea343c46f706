"""The script of a page of Streamlit's, asked for as a browser does but without one."""

import time
from typing import Final

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

PATIENCE_SECONDS: Final = 60


def script_seconds(server: str, page: str, times: int) -> list[float]:
    """From asking for a page, in one session again and again, to its script's last message.

    `page` is the end of the address, as in "jobs"; empty for the first page. The first run of a
    session, which imports what the page needs, is left out.

    Protocol: streamlit/proto/BackMsg.proto, ForwardMsg.proto.
    """
    url = f"{server.replace('http', 'ws', 1)}/_stcore/stream"
    with connect(
        url, origin=Origin(server), subprotocols=[Subprotocol("streamlit")], max_size=None
    ) as socket:
        return [_run(socket, page) for _ in range(times + 1)][1:]


def _run(socket: ClientConnection, page: str) -> float:
    ask = BackMsg()
    ask.rerun_script.page_name = page
    ask.rerun_script.query_string = ""
    begin = time.monotonic()
    socket.send(ask.SerializeToString())
    while True:
        answer = ForwardMsg()
        data = socket.recv(timeout=PATIENCE_SECONDS)
        assert isinstance(data, bytes)
        answer.ParseFromString(data)
        if answer.WhichOneof("type") == "script_finished":
            assert answer.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY, answer
            return time.monotonic() - begin
