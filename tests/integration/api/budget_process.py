"""A process of a test: holds the cost of jobs against a budget, and prints how many were let in.

`python -m tests.integration.api.budget_process URL NAME JOBS COST BUDGET`
"""

import asyncio
import sys

from api.limit.budget import Account, Budgets, BudgetSpent
from eventing.job.job import JobId
from eventing.redis.connection import connect


async def main(url: str, name: str, jobs: int, cost: float, budget: float) -> None:
    redis, taken = connect(url), 0
    account = Account(of="tenant", name="acme", per_month=budget)
    for number in range(jobs):
        try:
            await Budgets(redis).take([account], JobId(f"{name}-{number}"), cost)
            taken += 1
        except BudgetSpent:
            pass
    await redis.aclose()
    print(taken)


if __name__ == "__main__":
    asyncio.run(
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]))
    )
