"""Downloads of pictures, several at a time: each file comes whole or not at all, and a one-line reason says why not."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from time import monotonic
from urllib.parse import urljoin, urlsplit

import requests
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from urllib3.exceptions import HTTPError, IncompleteRead, InvalidHeader
from urllib3.util import Retry

CHUNK = 1 << 16
MOST_REDIRECTS = 5
ACCEPT = "image/jpeg, image/png, image/webp;q=0.8, */*;q=0.5"
TRY_AGAIN = (408, 425, 429)
"""Statuses below 500 that may pass."""


class Manners(BaseModel):
    """Limits of a download, and how often it may ask.

    Attributes
    ----------
    per_host : downloads at a time from one host, and failures in a row after which it is not asked any more.
    attempts : for one file.
    pause : seconds before the second attempt; they double with every further one.
    silence : seconds without a byte after which an attempt has failed.
    seconds : for one file, pauses included.
    megabytes : of one file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    user_agent: str
    per_host: PositiveInt
    attempts: PositiveInt
    pause: PositiveFloat
    silence: PositiveFloat
    seconds: PositiveFloat
    megabytes: PositiveFloat


class Refused(Exception):
    """A download that failed for good; the message is the reason, without the address."""


class Fault(Exception):
    """An attempt that failed, where another may succeed. `pause` is the wait that the server asks for, in seconds."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class Downloader:
    """Downloads for one run.

    Parameters
    ----------
    hosts : hosts that an address may redirect to, besides its own.
    mirror : base address that is asked in place of all others, for `<mirror>/<host>/<path>`; none if empty.
    """

    def __init__(self, manners: Manners, hosts: frozenset[str], mirror: str = "") -> None:
        self.manners = manners
        self.hosts = hosts
        self.mirror = mirror.rstrip("/")
        self._session = requests.Session()
        self._session.headers.update(
            {"User-Agent": manners.user_agent, "Accept": ACCEPT, "Accept-Encoding": "identity"}
        )
        self._quiet: dict[str, float] = {}  # host -> when it may be asked again
        self._failed: dict[str, list[str]] = defaultdict(list)  # host -> reasons of its latest failures in a row
        self._stop = Event()

    def each(self, addresses: Mapping[str, str], work: Callable[[str], None]) -> Iterator[tuple[str, str]]:
        """Call `work` with every name, some at a time for each host; yield names as they end, with why if refused.

        Parameters
        ----------
        addresses : name -> address; names without one count as one host.
        """
        with ExitStack() as stack:
            pools: dict[str, ThreadPoolExecutor] = defaultdict(
                lambda: stack.enter_context(ThreadPoolExecutor(self.manners.per_host))
            )
            futures = {pools[self._host(address)].submit(work, name): name for name, address in addresses.items()}
            try:
                for future in as_completed(futures):
                    error = future.exception()
                    if error and not isinstance(error, Refused):
                        raise error
                    yield futures[future], str(error or "")
            finally:
                # After a failure or an interrupt the others shall neither begin nor sit out their pauses.
                self._stop.set()
                for future in futures:
                    future.cancel()

    def get(self, address: str, file: Path) -> None:
        """Download an address to `file`, which may hold a part if this fails.

        Raises
        ------
        Refused : the server does not send it, or it is too large or too slow.
        """
        deadline = monotonic() + self.manners.seconds
        host, reason = self._host(address), ""
        for attempt in range(self.manners.attempts):
            failed = self._failed[host]
            if len(failed) >= self.manners.per_host:
                raise Refused(f"skipped: the last {len(failed)} downloads from {host} failed ({failed[-1]})")
            self._wait(self._quiet.get(host, 0.0) - monotonic(), deadline, "other files of this host were turned down")
            try:
                self._attempt(address, file, deadline)
                return failed.clear()
            except Fault as fault:
                reason, asked = str(fault), fault.pause
            except (requests.RequestException, HTTPError) as error:
                reason, asked = _innermost(error), 0.0
            if asked:
                self._quiet[host] = monotonic() + asked
            if attempt + 1 < self.manners.attempts:
                # A random share keeps several downloads from coming back all at once.
                self._wait(max(asked, self.manners.pause * 2**attempt * (1 + random.random()) / 2), deadline, reason)
        self._failed[host].append(reason)
        raise Refused(f"{reason} (attempt {self.manners.attempts} of {self.manners.attempts})")

    def _wait(self, pause: float, deadline: float, reason: str) -> None:
        if pause > 0 and monotonic() + pause > deadline:
            raise Refused(f"{reason}; the next attempt is due in {pause:.0f} s, run again after that")
        if self._stop.wait(max(pause, 0.0)):
            raise Refused("interrupted")

    def _attempt(self, address: str, path: Path, deadline: float) -> None:
        size = 0
        with self._open(address) as response, path.open("wb") as file:
            self._check_head(response)
            # Not iter_content: that waits for a full chunk, however slowly it drips.
            while chunk := response.raw.read1(CHUNK):
                size += len(chunk)
                self._check_size(size)
                if monotonic() > deadline:
                    raise Refused(f"not whole after {self.manners.seconds:g} s; run again, or raise download.seconds")
                if self._stop.is_set():
                    raise Refused("interrupted")
                file.write(chunk)

    def _check_head(self, response: requests.Response) -> None:
        code = response.status_code
        if code in TRY_AGAIN or code >= 500:
            raise Fault(f"HTTP {code}", _retry_after(response))
        if code != 200:
            raise Refused(f"HTTP {code}")
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind and not kind.startswith("image/") and not kind.endswith("/octet-stream"):
            raise Refused(f"sends {kind}, no picture")
        length = response.headers.get("Content-Length", "")
        self._check_size(int(length) if length.isdigit() else 0)

    def _check_size(self, size: int) -> None:
        if size > self.manners.megabytes * 1e6:
            raise Refused(f"is larger than {self.manners.megabytes:g} MB")

    def _open(self, address: str) -> requests.Response:
        """The answer at the end of all redirects, each of which must lead to an allowed host."""
        where = self._where(address)
        allowed = self.hosts | {urlsplit(where).netloc}
        for _ in range(MOST_REDIRECTS):
            try:
                response = self._session.get(where, stream=True, allow_redirects=False, timeout=self.manners.silence)
            except ValueError as error:  # requests looks at where it would lead, too
                raise Refused(f"no address, or leads to none ({error})") from None
            if not response.is_redirect:
                return response
            response.close()
            where = _next(where, response.headers["Location"], allowed)
        raise Refused(f"still leads on after {MOST_REDIRECTS} redirects")

    def _where(self, address: str) -> str:
        return f"{self.mirror}/{address.partition('://')[2]}" if self.mirror else address

    def _host(self, address: str) -> str:
        return urlsplit(self._where(address)).netloc if address else ""


def _next(where: str, location: str, allowed: frozenset[str]) -> str:
    """The address that a redirect leads to, if it is allowed."""
    leads = urlsplit(urljoin(where, location))
    if leads.netloc not in allowed:
        raise Refused(f"leads to {leads.geturl()}, whose host is none that it may lead to")
    if leads.scheme != "https" and urlsplit(where).scheme == "https":
        raise Refused(f"leads to {leads.geturl()}, which is not encrypted")
    return leads.geturl()


def _retry_after(response: requests.Response) -> float:
    """Seconds that the server asks to wait, given as a number or a date; 0 if it does not say."""
    try:
        return Retry().get_retry_after(response.raw) or 0.0
    except InvalidHeader:
        return 0.0


def _innermost(error: BaseException) -> str:
    """The bare reason; libraries wrap it in the names of their own objects."""
    while error.__context__:
        error = error.__context__
    if isinstance(error, IncompleteRead):
        return "cut off"
    return " ".join(str(error).split()) or type(error).__name__
