// Which mutex guards what, said so that clang checks it (-Wthread-safety, an error in the builds
// that clang compiles; nothing for other compilers). See mutex.h for the mutexes that it knows.
//
//   class Counter {
//     void add() { MutexLock lock(mutex_); add_held(); }
//     void add_held() PLATTER_REQUIRES(mutex_) { ++count_; }
//     Mutex mutex_;
//     int count_ PLATTER_GUARDED_BY(mutex_) = 0;
//   };
//
// The check compares expressions: `core_.mutex` of one object and of another are two mutexes to it,
// though both refer to one. What a mutex of another object guards is declared with a MutexRole,
// which stands for that mutex in every object of a kind:
//
//   inline constexpr MutexRole table_mutex;
//   Mutex& mutex() PLATTER_RETURNS_CAPABILITY(table_mutex) { return mutex_; }
//   int entries_ PLATTER_GUARDED_BY(table_mutex);
//
// A function annotated so is checked inside its body, a coroutine as well. Constructors and
// destructors are not checked: nobody else knows the object then. A lambda is checked as a function
// of its own: one that runs with a mutex held says PLATTER_REQUIRES before its body (which its
// caller, if that is ours, must then know to be true), or goes through a pointer made outside.
#pragma once

#ifdef __clang__
#define PLATTER_THREAD_ATTRIBUTE(x) __attribute__((x))
#else
#define PLATTER_THREAD_ATTRIBUTE(x)
#endif

// Types.
#define PLATTER_CAPABILITY(name) PLATTER_THREAD_ATTRIBUTE(capability(name))
#define PLATTER_SCOPED_CAPABILITY PLATTER_THREAD_ATTRIBUTE(scoped_lockable)

// Data: read and written only with the mutex held.
#define PLATTER_GUARDED_BY(mutex) PLATTER_THREAD_ATTRIBUTE(guarded_by(mutex))

// Functions: the caller holds the mutex; must not hold it.
#define PLATTER_REQUIRES(...) PLATTER_THREAD_ATTRIBUTE(requires_capability(__VA_ARGS__))
#define PLATTER_EXCLUDES(...) PLATTER_THREAD_ATTRIBUTE(locks_excluded(__VA_ARGS__))

// Functions that take a mutex and return with it held, and those that give it up.
#define PLATTER_ACQUIRE(...) PLATTER_THREAD_ATTRIBUTE(acquire_capability(__VA_ARGS__))
#define PLATTER_ACQUIRE_SHARED(...) PLATTER_THREAD_ATTRIBUTE(acquire_shared_capability(__VA_ARGS__))
#define PLATTER_RELEASE(...) PLATTER_THREAD_ATTRIBUTE(release_capability(__VA_ARGS__))
#define PLATTER_RELEASE_SHARED(...) PLATTER_THREAD_ATTRIBUTE(release_shared_capability(__VA_ARGS__))
#define PLATTER_RELEASE_GENERIC(...) \
  PLATTER_THREAD_ATTRIBUTE(release_generic_capability(__VA_ARGS__))
// The function gives up what a lock holds that it is given.
#ifdef __clang__
#define PLATTER_RELEASE_LOCK(lock)                                                             \
  _Pragma("clang diagnostic push")                                                             \
      _Pragma("clang diagnostic ignored \"-Wthread-safety-attributes\"") PLATTER_RELEASE(lock) \
          _Pragma("clang diagnostic pop")
#else
#define PLATTER_RELEASE_LOCK(lock)
#endif

// The function returns this mutex.
#define PLATTER_RETURNS_CAPABILITY(mutex) PLATTER_THREAD_ATTRIBUTE(lock_returned(mutex))
// The body is not checked; what it promises its callers is.
#define PLATTER_NO_THREAD_CHECK PLATTER_THREAD_ATTRIBUTE(no_thread_safety_analysis)
