"""A worker of the task queue in queue.mjs: takes tasks from one ring and answers in another."""

import json
import sys

import offloop


def work(task: dict) -> dict:
    return {"id": task["id"], "length": len(task["text"])}


def main() -> None:
    tasks, results = (offloop.RingBuffer.attach([int(fd) for fd in fds.split(",")]) for fds in sys.argv[1:3])
    stuck = "--stuck" in sys.argv
    with results.producer() as producer:
        # Ends when the queue is closed, empty, and no other worker has a task that could come back.
        for delivery in tasks.consumer(ack="manual"):
            if stuck:
                print("took a task", flush=True)
                sys.stdin.read()
            answer = work(json.loads(delivery.bytes)) | {"redelivered": delivery.redelivered}
            producer.push(json.dumps(answer).encode())
            delivery.ack()


if __name__ == "__main__":
    main()
