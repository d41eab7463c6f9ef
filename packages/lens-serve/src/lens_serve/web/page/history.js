// Pictures that this browser keeps, on this device only: at most LIMIT, the oldest go first.

export const LIMIT = 60;

let opened = null;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("lens", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("pictures", { keyPath: "id", autoIncrement: true });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

// One transaction; its value is that of the last request in it.
async function transact(mode, work) {
  const store = (await database()).transaction("pictures", mode);
  return new Promise((resolve, reject) => {
    const request = work(store.objectStore("pictures"));
    store.oncomplete = () => resolve(request.result);
    store.onabort = store.onerror = () => reject(store.error);
  });
}

// Other windows of this browser keep pictures in the same place, and are told when it changes.
const channel = new BroadcastChannel("lens.pictures");
export function onChange(act) {
  channel.onmessage = act;
}

// A picture is {blob, thumbnail, request, receipt, …}; its id comes back.
export async function keep(picture) {
  const id = await transact("readwrite", (store) => {
    const added = store.add(picture);
    store.count().onsuccess = ({ target }) => trim(store, target.result - LIMIT);
    return added;
  });
  channel.postMessage(null);
  return id;
}

function trim(store, surplus) {
  if (surplus <= 0) return;
  store.openCursor().onsuccess = ({ target }) => {
    const cursor = target.result;
    if (!cursor || surplus-- <= 0) return;
    cursor.delete();
    cursor.continue();
  };
}

export const kept = () => transact("readonly", (store) => store.getAll());

export async function clear() {
  await transact("readwrite", (store) => store.clear());
  channel.postMessage(null);
}
