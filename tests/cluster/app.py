from holdfast import App, DurableObject, Rejected

app = App()


@app.kind
class Counter(DurableObject):
    async def increment(self, by: int = 1) -> int:
        if by < 0:
            raise Rejected("by must not be negative", by=by)
        n = self.storage.get("n", int, default=0) + by
        self.storage.put("n", n)
        return n

    async def value(self) -> int:
        return self.storage.get("n", int, default=0)
