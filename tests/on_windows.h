/* What the tests call that Windows has under another name, or not at all. test.h includes it there. Links, which need a
   right that few users have, and FIFOs are not tested: TEST_NO_LINKS. */
#ifndef TSK_ON_WINDOWS_H
#define TSK_ON_WINDOWS_H

#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <windows.h>

#include <direct.h>
#include <fcntl.h>
#include <io.h>

#define TEST_NO_LINKS
#define TEST_DEVICE "NUL"

#define mkdir(path, mode) ((void)(mode), _mkdir(path))
#define alarm(seconds) ((void)(seconds))
#undef ftruncate
#undef truncate
#define ftruncate(descriptor, size) test_resize(descriptor, size)
#define truncate(path, size) test_truncate(path, size)

/* What it grows by takes no room on the disk. */
static TEST_UNUSED int test_resize(int descriptor, long long size) {
    HANDLE handle = (HANDLE)_get_osfhandle(descriptor);
    LARGE_INTEGER end;
    DWORD returned;
    end.QuadPart = size;
    DeviceIoControl(handle, 0x900c4 /* FSCTL_SET_SPARSE */, NULL, 0, NULL, 0, &returned, NULL);
    return SetFilePointerEx(handle, end, NULL, FILE_BEGIN) && SetEndOfFile(handle) ? 0 : -1;
}

static TEST_UNUSED int test_truncate(const char *path, long long size) {
    int descriptor = _open(path, _O_RDWR | _O_BINARY), result = descriptor < 0 ? -1 : test_resize(descriptor, size);
    if (descriptor >= 0) _close(descriptor);
    return result;
}

/* A folder with everything in it. */
static TEST_UNUSED int test_remove_wide(const wchar_t *path) {
    wchar_t inner[1024];
    WIN32_FIND_DATAW found;
    HANDLE search;
    int result = 0;
    _snwprintf(inner, 1024, L"%ls/*", path);
    search = FindFirstFileW(inner, &found);
    if (search == INVALID_HANDLE_VALUE) return DeleteFileW(path) ? 0 : -1;
    do {
        if (wcscmp(found.cFileName, L".") == 0 || wcscmp(found.cFileName, L"..") == 0) continue;
        _snwprintf(inner, 1024, L"%ls/%ls", path, found.cFileName);
        result |= test_remove_wide(inner);
    } while (FindNextFileW(search, &found));
    FindClose(search);
    return result | (RemoveDirectoryW(path) ? 0 : -1);
}
static TEST_UNUSED int test_remove_tree(const char *path) {
    wchar_t wide[1024];
    return MultiByteToWideChar(CP_UTF8, 0, path, -1, wide, 1024) ? test_remove_wide(wide) : -1;
}

#endif
