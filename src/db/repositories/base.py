"""What every table can be asked."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Generic, TypeVar, cast
from uuid import UUID

from sqlalchemy import ColumnElement, CursorResult, Delete, Update, delete, exists, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from src.core.exceptions import AppException, NotFoundException
from src.db.base import BaseModel

ModelT = TypeVar("ModelT", bound=BaseModel)
Filters = Mapping[str, Any]
Condition = ColumnElement[bool]


class BaseRepository(Generic[ModelT]):
    """Filters are `{column: value}`, all of which must hold; `None` means IS NULL.

    An unknown column raises `ValueError`: a filter that were skipped would answer with somebody else.
    `get_*` raises `not_found` where nothing matches; `find_*` returns `None`.
    """

    model: type[ModelT]
    not_found: ClassVar[type[NotFoundException]] = NotFoundException
    # What a violated unique index means to a caller: by its name (PostgreSQL), and by SQLite's message.
    conflicts: ClassVar[Mapping[str, type[AppException]]] = {}

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    @property
    def _is_sqlite(self) -> bool:
        """SQLite has one writer at a time, so it needs, and has, no locks on rows."""
        return self._session.get_bind().dialect.name == "sqlite"

    async def get(self, filters: Filters) -> ModelT:
        """The one row that matches. Raises `not_found`, and `MultipleResultsFound` if the question is ambiguous."""
        row = await self.find(filters)
        if row is None:
            raise self.not_found
        return row

    async def get_by_id(self, id_: UUID) -> ModelT:
        """Raises `not_found`."""
        return await self.get({"id": id_})

    async def find(self, filters: Filters) -> ModelT | None:
        return (await self._session.scalars(select(self.model).where(*self._where(filters)))).one_or_none()

    async def list(
        self, filters: Filters | None = None, *, limit: int = 100, after: UUID | None = None
    ) -> Sequence[ModelT]:
        """Rows in the order of their ids, so by age, from behind the id `after`."""
        query = select(self.model).where(*self._where(filters or {})).order_by(self.model.id).limit(limit)
        if after is not None:
            query = query.where(self.model.id > after)
        return (await self._session.scalars(query)).all()

    async def count(self, filters: Filters | None = None) -> int:
        query = select(func.count()).select_from(self.model).where(*self._where(filters or {}))
        return (await self._session.scalars(query)).one()

    async def exists(self, filters: Filters) -> bool:
        query = select(exists().where(*self._where(filters)).select_from(self.model))
        return (await self._session.scalars(query)).one()

    async def add(self, row: ModelT) -> ModelT:
        """Insert the row. Raises the domain error of a constraint in `conflicts`, `IntegrityError` for another."""
        self._session.add(row)
        with self._conflicts_named():
            await self._session.flush()
        return row

    async def delete(self, row: ModelT) -> None:
        await self._session.delete(row)
        await self._session.flush()

    async def find_ids(self, condition: Condition, *, limit: int) -> Sequence[UUID]:
        return (await self._session.scalars(select(self.model.id).where(condition).limit(limit))).all()

    async def purge(self, ids: Sequence[UUID], condition: Condition) -> int:
        """Delete those of these rows for which the condition (still) holds; how many they were.

        Rows that somebody has locked are left for the next time: waiting for them could end in a deadlock.
        """
        unlocked = select(self.model.id).where(self.model.id.in_(ids), condition).with_for_update(skip_locked=True)
        return await self._count_changed(delete(self.model).where(self.model.id.in_(unlocked)))

    async def _count_changed(self, statement: Update | Delete) -> int:
        """Change or delete rows; how many they were. Rows that the session has loaded keep their old values."""
        result = await self._session.execute(statement.execution_options(synchronize_session=False))
        return cast("CursorResult[Any]", result).rowcount

    def _where(self, filters: Filters) -> Sequence[ColumnElement[bool]]:
        columns = self.model.__mapper__.columns
        unknown = [name for name in filters if name not in columns]
        if unknown:
            raise ValueError(f"{self.model.__name__} has no column {', '.join(unknown)}")
        return [columns[name] == value for name, value in filters.items()]

    @contextmanager
    def _conflicts_named(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            violated = getattr(getattr(error.orig, "__cause__", None), "constraint_name", None) or str(error.orig)
            if violated in self.conflicts:
                raise self.conflicts[violated] from error
            raise
